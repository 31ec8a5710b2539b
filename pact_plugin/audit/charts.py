"""The charts of an audit, as PNG files and as SVG that takes the colours of the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_plugin.audit.result import AuditResult, Curve
from pact_plugin.data.prompts import KINDS
from pact_plugin.errors import PluginError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the PNG files; in SVG each gives way to the page's variable of that name.
COLOURS = {
    "ink": "#1d2733",
    "muted": "#5c6877",
    "grid": "#dce1e7",
    "reference": "#2c6fb3",
    "candidate": "#c2541b",
    "paper": "#fefefd",
}
FEWEST = 5
"""Positions that fewer answers reach are not drawn, if others are reached by more."""

_CURVES = ("divergence", "safety_mass")
_STYLE = {
    **{"font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "pact-audit"},
    **{"text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["muted"], "axes.edgecolor": COLOURS["muted"]},
    **{"xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "axes.facecolor": "none"},
}


@dataclass(frozen=True)
class Chart:
    """One chart: its heading, what it shows in words, and what draws it."""

    title: str
    description: str
    draw: Callable[[Axes], None]


def charts(result: AuditResult) -> dict[str, Chart]:
    """The charts that the audit has numbers for, by the name of their file."""
    drawn = {
        "rates": Chart(
            "Share of prompts refused",
            "Refusal rates with 95% intervals.",
            partial(_rates, result=result),
        )
    }
    for kind, comparison in result.comparisons().items():
        one = comparison.confidence
        if one is None:
            continue
        where = f"along the reference's answers to {kind} prompts, with 95% bands"
        masses = {"reference": one.mass_reference, "candidate": one.mass_candidate}
        divergence, mass = (f"{curve}_{kind}" for curve in _CURVES)
        drawn[divergence] = Chart(
            f"Divergence on the safety tokens, {kind} prompts",
            f"Mean {where}.",
            partial(_curves, curves={"candidate": one.divergence}, unit="nats"),
        )
        drawn[mass] = Chart(
            f"Probability of the safety tokens, {kind} prompts",
            f"Mean {where}.",
            partial(_curves, curves=masses, unit="probability"),
        )
    return drawn


def png(result: AuditResult, folder: Path) -> list[Path]:
    """Write every chart as a PNG file into `folder`, in place of those of an earlier audit.

    Raises:
        PluginError: matplotlib is missing.
    """
    written = []
    for name in ("rates", *(f"{curve}_{kind}" for curve in _CURVES for kind in KINDS)):
        (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier audit, which may have had more
    for name, chart in charts(result).items():
        written.append(folder / f"{name}.png")
        _save(chart, written[-1], titled=True, dpi=200, facecolor="white")
    return written


def svg(result: AuditResult) -> dict[str, str]:
    """Every chart as an SVG element for the page: no title, no reference to anything outside of it.

    Raises:
        PluginError: matplotlib is missing.
    """
    found = {}
    for name, chart in charts(result).items():
        buffer = io.StringIO()
        _save(chart, buffer, titled=False, format="svg", transparent=True, metadata={"Date": None})
        found[name] = _for_the_page(buffer.getvalue(), f"{chart.title}. {chart.description}")
    return found


def _for_the_page(text: str, description: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r"font: (\S+) [^;\"]*'[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    head = f'<svg role="img" aria-label="{description}"'
    return re.sub(r'^<svg( width="[^"]*"| height="[^"]*")*', head, text, count=1)


def _save(chart: Chart, target: Path | io.StringIO, *, titled: bool, **settings: Any) -> None:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PluginError("the charts need matplotlib", remedy="pip install 'pact-plugin[cli]'") from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.subplots()
        chart.draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=COLOURS["grid"], linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        if titled:
            axes.set_title(chart.title, loc="left", fontsize=10.5, fontweight="bold", color=COLOURS["ink"])
        figure.legend(loc="outside lower left", ncols=2, frameon=False)
        figure.savefig(target, **settings)


def _rates(axes: Axes, result: AuditResult) -> None:
    rows = result.comparisons()
    for place, one in enumerate(rows.values()):
        for side, shift in (("reference", -0.14), ("candidate", 0.14)):
            rate = getattr(one, side)
            ends = [[rate.rate - rate.low], [rate.high - rate.rate]]
            axes.errorbar(
                [100 * rate.rate],
                [place + shift],
                xerr=[[100 * end for end in side_ends] for side_ends in ends],
                fmt="o" if side == "reference" else "D",
                markersize=6,
                linewidth=2,
                capsize=4,
                color=COLOURS[side],
                label=side if place == 0 else None,
            )
    labels = [f"{kind}\nn = {one.reference.n}" for kind, one in rows.items()]
    axes.set_yticks(range(len(rows)), labels=labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("% of prompts refused")


def _curves(axes: Axes, curves: dict[str, Curve], unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for side, one in curves.items():
        fewest = min(FEWEST, max(one.n))
        end = next((i for i, n in enumerate(one.n) if n < fewest), len(one.n))
        places = range(1, end + 1)
        line = "--" if side == "reference" else "-"
        # The dashed line on top: where the models agree, both are seen.
        order = 3 if side == "reference" else 2
        axes.plot(places, one.mean[:end], line, color=COLOURS[side], linewidth=2, label=side, zorder=order)
        axes.fill_between(places, one.low[:end], one.high[:end], color=COLOURS[side], alpha=0.18, linewidth=0)
    if unit == "probability":
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_ylim(bottom=0, top=None if axes.dataLim.y1 > 0 else 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("token of the reference's answer")
    axes.set_ylabel(unit)
