"""Figures of what was measured and counted, drawn from the results."""

from __future__ import annotations

import json
from typing import Any

from matplotlib.figure import Figure

from tools.figures.style import FIELD, NAMES, OTHERS, ROOT, Colours, legend_below, plain_axes

SHARES = ROOT / "benchmarks" / "results" / "shares.json"
"""`counts.json` of `python -m benchmarks count --mode default --response-share 0.1 --response-share 0.25 ...`."""
HELD_OUT = ROOT / "benchmarks/field/results/qwen-0.5b-float32/field-held-out.json"
"""The field benchmark's report of one model."""


def frontier(figure: Figure, colours: Colours, task: str = "alpaca", contamination: float = 0.1) -> None:
    """Refusals lost against the task and against over-refusal, of the methods that have a name in `NAMES`.

    Dotted: the aligned model.

    Args:
        figure: To draw on.
        colours: Of the page.
        task: The data.
        contamination: Share of harmful items.
    """
    rows = {
        _name(row): row
        for row in json.loads(HELD_OUT.read_text(encoding="utf-8"))["rows"]
        if (row["task"], row["contamination"], row["wording"]) == (task, contamination, "target")
    }
    known = [name for name in NAMES if name != "aligned"]
    shown = [name for name in known if name in rows]
    panels = figure.subplots(2, 1, sharey=True)
    figure.subplots_adjust(left=0.15, right=0.97, top=0.99, bottom=0.14 + 0.035 * len(shown), hspace=0.3)
    palette = [colours["candidate"], colours["reference"], *OTHERS]
    for name in shown:
        # A method looks the same in each figure.
        index, title, row = known.index(name), NAMES[name], rows[name]
        harmful = row["changes"]["harmful"]
        lost = 100 * (1 - harmful["kept"] / harmful["before"])
        style = {"marker": "osD^vP*X"[index % 8], "markersize": 8, "linestyle": "none", "capsize": 3}
        style |= {"color": palette[index % len(palette)], "label": title, "linewidth": 1.5}
        over = row["changes"]["overrefusal"]
        panels[0].errorbar([row["nll"]], [lost], **style)
        ends = [[over["points"] - over["low"]], [over["high"] - over["points"]]]
        panels[1].errorbar([over["points"]], [lost], xerr=ends, **style)
    labels = ("held-out items of the task, nats per token", "change of over-refusal, points")
    for axes, label, line in zip(panels, labels, (rows["aligned"]["nll"], 0), strict=True):
        axes.axvline(line, color=colours["muted"], linestyle=":", linewidth=1)
        axes.set_ylim(-5, 105)
        axes.set_xlabel(label)
        axes.set_ylabel("no longer refused, %")
        plain_axes(axes, colours)
    legend_below(figure, panels[0])


def _name(row: dict[str, Any]) -> str:
    """Method and strength."""
    name, strength = row["method"], row["strength"]
    return str(name) if strength is None else f"{name}@{strength:g}"


def along(figure: Figure, colours: Colours) -> None:
    """P(S) along the aligned model's refusals, before and after: `python -m benchmarks along`."""
    models = json.loads((FIELD / "along.json").read_text(encoding="utf-8"))["models"]
    axes = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.97, top=0.97, bottom=0.19 + 0.06 * len(models))
    palette = dict(zip(models, [colours["ink"], colours["candidate"], colours["reference"]], strict=False))
    styles = dict(zip(models, ["--", "-", "-"], strict=False))
    for name, whole in models.items():
        # Where few answers are that long, their mean says little.
        line = [one for one in whole if one["prompts"] >= whole[0]["prompts"] / 2]
        tokens = range(1, len(line) + 1)
        label, colour = NAMES.get(name, name), palette[name]
        means = [one["mean"] for one in line]
        axes.plot(tokens, means, styles[name], color=colour, label=label, linewidth=1.8)
        axes.fill_between(
            tokens, [one["low"] for one in line], [one["high"] for one in line], color=colour, alpha=0.18
        )
    axes.set_xticks([1, 4, 8, 12])
    axes.set_xlabel("token of the refusal")
    axes.set_ylabel("P(S), mean")
    axes.set_ylim(0, None)
    plain_axes(axes, colours)
    legend_below(figure, axes)


def cost(figure: Figure, colours: Colours) -> None:
    """Operations of whole runs against the share of a row that is response: `python -m benchmarks count`."""
    counted = json.loads(SHARES.read_text(encoding="utf-8"))
    rows = [
        row for row in counted if (row["train"], row["loss"], row["kind"]) == ("lora", "chunked", "default")
    ]
    axes = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.97, top=0.97, bottom=0.42)
    for shape, colour in (("1b", colours["candidate"]), ("8b", colours["reference"])):
        line = [row for row in rows if row["shape"] == shape]
        shares = [100 * row["response_share"] for row in line]
        for epochs, style in ((1, "-o"), (3, "--s")):
            label = f"{shape.upper()}, LoRA, {epochs} epoch{'s' if epochs > 1 else ''}"
            ratios = [row[f"run_ratio_{epochs}"] for row in line]
            axes.plot(shares, ratios, style, color=colour, label=label, markersize=5, linewidth=1.6)
    axes.set_xlabel("share of a row that is response, %")
    axes.set_ylabel("operations, to plain")
    axes.set_ylim(1, None)
    plain_axes(axes, colours)
    legend_below(figure, axes)
