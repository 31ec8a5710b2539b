"""The frontier: attack success and over-refusal against the task, along each method's strength."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.preservation.methods import METHODS
from benchmarks.preservation.run import ALIGNED
from benchmarks.preservation.summary import Row

_COLOURS = (
    "#7b8794",
    "#b58a00",
    "#8a5fb0",
    "#2b6cb0",
    "#3aa0a0",
    "#c8553d",
    "#9aa63f",
    "#6b8f3a",
    "#2a7f62",
    "#111111",
)
NARROWEST = 20
"""Points of the task score that a picture spans at least."""
_MARKS = "sDP^v<>Xo*hdp"  # more than colours, so that variants have pairs of their own


def frontier(rows: Sequence[Row], path: Path, heading: str) -> None:
    """Write a picture of two panels; low and to the right is best in both.

    Args:
        rows: Of one setting.
        path: Where to write it.
        heading: Above it.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    figure.suptitle(heading)
    panels = figure.subplots(1, 2, sharex=True)
    panels[0].set_title("Attack success, direct requests and role-play", fontsize=10)
    panels[1].set_title("Over-refusal: share of harmless requests refused", fontsize=10)
    for axes, measure in zip(panels, ("attack_success_asked", "over_refusal"), strict=True):
        for index, name in enumerate(METHODS):
            points = [row for row in rows if row.method == name]
            if not points:
                continue
            x = [100 * row.measures["task_score"].mean for row in points]
            y = [100 * row.measures[measure].mean for row in points]
            style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKS[index % len(_MARKS)]}
            axes.errorbar(
                x,
                y,
                xerr=[100 * row.measures["task_score"].spread for row in points],
                yerr=[100 * row.measures[measure].spread for row in points],
                label=METHODS[name].title,
                linewidth=1.2,
                elinewidth=0.6,
                markersize=[5, 7][len(points) == 1],
                alpha=0.9,
                **style,
            )
            for row, left, up in zip(points, x, y, strict=True):
                if row.weight is not None and len(points) > 1:
                    axes.annotate(
                        f"{row.weight:g}",
                        (left, up),
                        (4, 3),
                        textcoords="offset points",
                        fontsize=7,
                        color=style["color"],
                    )
        before = [row for row in rows if row.method == ALIGNED]
        if before:
            level = 100 * before[0].measures[measure].mean
            axes.axhline(level, color="#444444", linestyle=":", linewidth=1, label="aligned model, before")
        axes.set_xlabel("task score, %")
        axes.set_ylabel("%")
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
    low, high = panels[0].get_xlim()
    if high - low < NARROWEST:  # else a difference of one item would look like the whole of the task
        middle = (low + high) / 2
        panels[0].set_xlim(middle - NARROWEST / 2, middle + NARROWEST / 2)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
