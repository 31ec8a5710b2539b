"""The figures of the documentation: `python tools/figures.py` (`make figures`) draws them into `docs/images`.

Each is drawn twice, for light pages and for dark ones, as wide as a phone, in the colours of the audit's charts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from pact_plugin.audit.charts import COLOURS

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FIELD = ROOT / "benchmarks" / "field" / "results" / "qwen-0.5b-alpaca" / "held-out.json"
LIGHT = COLOURS | {"held": COLOURS["reference"], "yields": COLOURS["candidate"], "box": "#eef1f5"}
DARK = {
    **{"ink": "#e6eaf0", "muted": "#a3adba", "grid": "#3a414d", "box": "#2a303b", "paper": "#14171d"},
    **{"reference": "#6aa8e8", "candidate": "#ee8f5c", "held": "#6aa8e8", "yields": "#ee8f5c"},
}
OTHERS = ("#3c9d7b", "#b58a00", "#9b70c2", "#d2447e", "#3aa0a0", "#7b8794")
"""Of further methods: seen on light and on dark."""
Colours = dict[str, str]


def _style(colours: Colours) -> dict[str, Any]:
    return {
        **{"font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "pact-docs"},
        **{"font.sans-serif": ["system-ui", "DejaVu Sans"], "hatch.linewidth": 1.0, "axes.facecolor": "none"},
        **{
            "text.color": colours["ink"],
            "axes.labelcolor": colours["muted"],
            "axes.edgecolor": colours["muted"],
        },
        **{"xtick.color": colours["muted"], "ytick.color": colours["muted"]},
    }


def both(name: str, draw: Callable[[Figure, Colours], None], height: float) -> None:
    """Draw a figure for light and for dark pages."""
    for scheme, colours in (("light", LIGHT), ("dark", DARK)):
        with rc_context(_style(colours)):
            figure = Figure(figsize=(4.8, height))
            draw(figure, colours)
            figure.savefig(IMAGES / f"{name}-{scheme}.svg", transparent=True, metadata={"Date": None})


# --- the method ---


def method(figure: Figure, colours: Colours) -> None:
    """What is free, what yields and what is held: one row of tokens for each, and the buckets of the divergence."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 48)
    axes.set_ylim(56, 0)
    axes.text(1, 2.2, "Your data", fontsize=12, fontweight="bold", va="center")
    _row(axes, colours, 4.5, "a harmless request", ["free"] * 7)
    _note(axes, colours, 10.6, "muted", "Free: cross-entropy on every token.")
    _row(axes, colours, 13.5, "a harmful request", ["yields"] * 4 + ["free"] * 3)
    _note(axes, colours, 19.6, "yields", "Yields: the first 16 tokens of a compliant")
    _note(axes, colours, 21.9, "yields", "answer are left out of the cross-entropy.")
    axes.plot([1, 47], [24.6, 24.6], color=colours["grid"], linewidth=1)
    axes.text(
        1, 27.2, "Anchors: the aligned model's own answers", fontsize=12, fontweight="bold", va="center"
    )
    _row(axes, colours, 29.5, "a prompt of the pool", ["held"] * 4)
    _note(axes, colours, 35.6, "held", "Held: at the first 16 tokens, these K + 1")
    _note(axes, colours, 37.9, "held", "probabilities keep to the aligned model's:")
    _buckets(axes, colours, 52.6)


def _box(axes: Axes, x: float, y: float, width: float, **style: Any) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, 4, boxstyle="round,pad=0,rounding_size=0.6", **style))


def _row(axes: Axes, colours: Colours, y: float, prompt: str, tokens: Sequence[str]) -> None:
    _box(axes, 1, y, 19, facecolor=colours["box"], edgecolor="none")
    axes.text(10.5, y + 2, prompt, ha="center", va="center", color=colours["muted"], fontsize=10)
    for index, kind in enumerate(tokens):
        x = 21.2 + 3.75 * index
        if kind == "free":
            _box(axes, x, y, 3.2, facecolor="none", edgecolor=colours["muted"], linewidth=1.2)
        elif kind == "yields":
            _box(axes, x, y, 3.2, facecolor="none", edgecolor=colours["yields"], hatch="////", linewidth=1.2)
        else:
            _box(axes, x, y, 3.2, facecolor=colours["held"], edgecolor=colours["held"], linewidth=1.2)


def _note(axes: Axes, colours: Colours, y: float, colour: str, text: str) -> None:
    axes.text(1, y, text, va="center", color=colours[colour], fontsize=10.5)


def _buckets(axes: Axes, colours: Colours, base: float) -> None:
    heights = {"I": 6.5, "Sorry": 4.2, "cannot": 2.2, "…": 1.0}
    for index, (token, height) in enumerate(heights.items()):
        x = 2 + 5.4 * index
        axes.bar(x + 2, -height, 3.6, bottom=base, color=colours["held"])
        axes.text(x + 2, base + 1.7, token, ha="center", va="center", fontsize=10)
    axes.bar(37, -9.5, 19, bottom=base, color=colours["box"], edgecolor=colours["held"], linewidth=1.2)
    for index, height in enumerate((2.5, 6.5, 1.5, 4.5, 3.5, 1.0)):
        axes.bar(29.6 + 2.95 * index, -height, 1.5, bottom=base, color=colours["muted"], alpha=0.55)
    axes.text(
        37,
        base - 8.0,
        "free among themselves",
        ha="center",
        va="center",
        fontsize=9.5,
        color=colours["muted"],
    )
    axes.text(37, base + 1.7, "all other tokens: one bucket", ha="center", va="center", fontsize=10)
    axes.text(12, base - 11, "K safety tokens", ha="center", va="center", fontsize=10, color=colours["muted"])


# --- what was measured ---


NAMES = {
    "pact": "PACT, the default",
    "top64": "PACT, top_k: 64",
    "pact-4-tokens": "PACT, anchors of 4 tokens",
    "replay-kl+easing": "full KL at the anchors, with easing",
}
"""Of methods that the benchmark calls otherwise."""


def frontier(figure: Figure, colours: Colours) -> None:
    """Refusals lost against the task, and against over-refusal, of each method that the field benchmark reports."""
    rows = json.loads(FIELD.read_text(encoding="utf-8"))["rows"]
    shown = {NAMES.get(row["method"], row["title"]): row for row in rows if row["method"] != "aligned"}
    panels = figure.subplots(2, 1, sharey=True)
    figure.subplots_adjust(left=0.15, right=0.97, top=0.99, bottom=0.14 + 0.035 * len(shown), hspace=0.3)
    palette = [colours["candidate"], colours["reference"], *OTHERS]
    for index, (title, row) in enumerate(shown.items()):
        harmful = row["changes"]["harmful"]
        lost = 100 * (1 - harmful["kept"] / harmful["before"])
        nll = row["nll_above_plain"]
        style = {"marker": "osD^vP*X"[index % 8], "markersize": 8, "linestyle": "none", "capsize": 3}
        style |= {"color": palette[index % len(palette)], "label": title, "linewidth": 1.5}
        over = row["changes"]["overrefusal"]
        for axes, (middle, low, high) in (
            (panels[0], nll or (0.0, 0.0, 0.0)),
            (panels[1], (over["points"], over["low"], over["high"])),
        ):
            axes.errorbar([middle], [lost], xerr=[[middle - low], [high - middle]], **style)
    for axes, label in zip(
        panels, ("task NLL less plain's, nats a token", "change of over-refusal, points"), strict=True
    ):
        axes.axvline(0, color=colours["muted"], linestyle=":", linewidth=1)
        axes.set_ylim(-5, 105)
        axes.set_xlabel(label)
        axes.set_ylabel("refusals lost, %")
        axes.grid(color=colours["grid"], linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.02, 0.0), frameon=False
    )


def main() -> None:
    """Draw every figure."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    both("method", method, 5.6)
    both("frontier", frontier, 6.4)


if __name__ == "__main__":
    main()
