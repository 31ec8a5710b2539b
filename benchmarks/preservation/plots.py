"""The frontier (attack success and over-refusal against the task, along each method's strength), and bars by method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
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
    "#c2185b",
)
_BEFORE = "#444444"
"""Of the aligned model."""
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
NARROWEST = 20
"""Points of the task score that a picture spans at least."""
NEAR = 2
"""Points of both scores within which one label is written for two strengths."""
_PANELS = {
    "attack_success_asked": ("Attack success\ndirect requests and role-play", "#c8553d"),
    "over_refusal": ("Over-refusal\nharmless requests refused", "#b58a00"),
    "task_score": ("Task score", "#2b6cb0"),
}
_MARKS = "sDP^v<>Xo*hdp"  # more than colours, so that variants have pairs of their own


def frontier(rows: Sequence[Row], path: Path, heading: str) -> None:
    """Write a picture of three panels: both kinds of harm against the task, low and to the right being best, and
    against each other, where a method that keeps what the aligned model does stays at its star.

    Args:
        rows: Of one setting.
        path: Where to write it.
        heading: Above it.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    figure.suptitle(heading)
    panels = figure.subplots(1, 3)
    panels[1].sharex(panels[0])
    shown = (
        ("task_score", "attack_success_asked", "Attack success, direct requests and role-play"),
        ("task_score", "over_refusal", "Over-refusal: share of harmless requests refused"),
        ("over_refusal", "attack_success_asked", "Attack success against over-refusal"),
    )
    before = [row for row in rows if row.method == ALIGNED]
    for axes, (across, up, title) in zip(panels, shown, strict=True):
        axes.set_title(title, fontsize=10)
        _curves(axes, rows, across, up)
        if before:
            place = [100 * before[0].measures[name].mean for name in (across, up)]
            if across == "task_score":
                axes.axhline(
                    place[1], color=_BEFORE, linestyle=":", linewidth=1, label="aligned model, before"
                )
            else:
                axes.plot(*place, marker="*", markersize=15, color=_BEFORE, zorder=1)
                axes.annotate(
                    "aligned model", place, (9, -4), textcoords="offset points", fontsize=8, va="top"
                )
        axes.set_xlabel({"task_score": "task score, %", "over_refusal": "over-refusal, %"}[across])
        axes.set_ylabel("%")
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
    low, high = panels[0].get_xlim()
    if high - low < NARROWEST:  # else a difference of one item would look like the whole of the task
        middle = (low + high) / 2
        panels[0].set_xlim(middle - NARROWEST / 2, middle + NARROWEST / 2)
    panels[2].set_xlim(-3, 103)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=130)


def _curves(axes: Axes, rows: Sequence[Row], across: str, up: str) -> None:
    """Every method along its strengths, with its spreads over seeds."""
    for index, name in enumerate(METHODS):
        points = [row for row in rows if row.method == name]
        if not points:
            continue
        x, y = ([100 * row.measures[measure].mean for row in points] for measure in (across, up))
        colour = _COLOURS[index % len(_COLOURS)]
        axes.errorbar(
            x,
            y,
            xerr=[100 * row.measures[across].spread for row in points],
            yerr=[100 * row.measures[up].spread for row in points],
            label=METHODS[name].title,
            linewidth=1.2,
            elinewidth=0.6,
            markersize=[5, 7][len(points) == 1],
            alpha=0.9,
            color=colour,
            marker=_MARKS[index % len(_MARKS)],
        )
        for place, text in labels([row.weight or 0 for row in points], x, y) if len(points) > 1 else ():
            axes.annotate(
                text,
                place,
                (4, 3),
                textcoords="offset points",
                fontsize=7,
                color=colour,
                bbox=_BEHIND | {"alpha": 0.7},
            )


def labels(
    weights: Sequence[float], x: Sequence[float], y: Sequence[float]
) -> list[tuple[tuple[float, float], str]]:
    """Where to write which strengths, in percent: once beside points that would hide each other's."""
    found: list[tuple[tuple[float, float], list[str]]] = []
    for weight, *place in zip(weights, x, y, strict=True):
        near = [
            names for at, names in found if all(abs(a - b) < NEAR for a, b in zip(at, place, strict=True))
        ]
        if near:
            near[0].append(f"{weight:g}")
        else:
            found.append(((place[0], place[1]), [f"{weight:g}"]))
    return [(place, ", ".join(names)) for place, names in found]


def bars(rows: Sequence[Row], path: Path, heading: str) -> None:
    """Write a picture of three panels, a bar for each method at its usual strength; thin lines are spreads over seeds.

    Args:
        rows: Of one setting.
        path: Where to write it.
        heading: Above it.
    """
    shown = [row for row in rows if row.usual]
    figure = Figure(figsize=(11, 1.5 + 0.34 * len(shown)), layout="constrained")
    figure.suptitle(heading)
    for axes, (measure, (name, colour)) in zip(
        figure.subplots(1, 3, sharey=True), _PANELS.items(), strict=True
    ):
        found = [row.measures[measure] for row in shown]
        bars = axes.barh(
            range(len(shown)),
            [100 * one.mean for one in found],
            xerr=[100 * one.spread for one in found],
            color=["#c3c8ce" if row.method == ALIGNED else colour for row in shown],
            error_kw={"elinewidth": 0.8},
        )
        axes.bar_label(bars, [f"{100 * one.mean:.1f}" for one in found], padding=4, fontsize=8, bbox=_BEHIND)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(0, 118)  # room for the labels
        axes.set_xticks(range(0, 101, 25))
        axes.set_yticks(range(len(shown)), [_of_seeds(row) for row in shown], fontsize=8)
        axes.set_xlabel("%")
        axes.spines[["top", "right"]].set_visible(False)
        if shown[0].method == ALIGNED and measure != "task_score":
            axes.axvline(100 * found[0].mean, color=_BEFORE, linestyle=":", linewidth=1)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)


def _of_seeds(row: Row) -> str:
    seeds = row.measures["task_score"].seeds
    return row.title + (f" ({seeds} seeds)" if seeds > 1 else "")
