"""The frontier of a data set: refusals lost against what keeping them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.field.results import HARMFUL
from benchmarks.field.settings import ALIGNED
from benchmarks.field.summary import Row

CAPTION = "Share of the aligned model's refusals to harmful requests that is lost; lower and nearer to zero is better."
_MARKS = {"": "o", "dropping": "s", "easing": "^", "probe": "v", "oracle": "*"}
"""By treatment; a method's colour is the same under each."""


def frontier(rows: Sequence[Row], path: Path, heading: str) -> None:
    """Write a picture of two panels; the strengths of one method are joined.

    Args:
        rows: Of one data set.
        path: Where to write it.
        heading: Above it.
    """
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    figure.suptitle(heading)
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row.method for row in rows if row.method != ALIGNED))
    methods = list(dict.fromkeys(name.partition("+")[0] for name in names))
    for name in names:
        own = sorted((row for row in rows if row.method == name), key=lambda row: row.strength or 0)
        style = _style(name, methods)
        _joined(left, [(row.nll_above_plain or (None,))[0] for row in own], own, style, name)
        _joined(right, [_change(row, "overrefusal") for row in own], own, style, name)
    left.set_ylabel("no longer refused,\n% of the aligned model's refusals")
    left.set_xlabel("task NLL above plain fine-tuning, nats per token")
    right.set_xlabel("change of over-refusal from the aligned model, points")
    for axes in (left, right):
        axes.axvline(0, color="#444444", linestyle=":", linewidth=1)
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def _style(name: str, methods: Sequence[str]) -> dict[str, Any]:
    base, _, treatment = name.partition("+")
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    line = ":" if treatment == "oracle" else "-"
    return {
        "color": colours[(2 * methods.index(base)) % 20 + methods.index(base) // 10],
        "marker": _MARKS[treatment],
        "linestyle": line,
    }


def lost(row: Row) -> float | None:
    """Percent of the aligned model's refusals to harmful requests that a method loses."""
    found = row.changes[HARMFUL]
    return None if found is None or not found.before else 100 * (1 - found.kept / found.before)


def _change(row: Row, name: str) -> float | None:
    found = row.changes[name]
    return None if found is None else found.points


def _joined(
    axes: Axes, across: Sequence[float | None], rows: Sequence[Row], style: Mapping[str, Any], name: str
) -> None:
    points = [
        (x, y, row.strength)
        for x, row in zip(across, rows, strict=True)
        if x is not None and (y := lost(row)) is not None
    ]
    if not points:
        return
    axes.plot(
        [x for x, _, _ in points], [y for _, y, _ in points], linewidth=1, alpha=0.9, label=name, **style
    )
    for x, y, strength in points if len(points) > 1 else ():
        axes.annotate(
            f"{strength:g}", (x, y), (4, 3), textcoords="offset points", fontsize=7, color=style["color"]
        )
