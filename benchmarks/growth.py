"""How the cost of the constraint grows with the number of safety tokens, the vocabulary, the response and the ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import charts
from benchmarks.overhead import Kind, Report, measure
from benchmarks.settings import PLAIN, Settings


@dataclass(frozen=True)
class Axis:
    """One size that is changed, the others as they are."""

    name: str
    points: dict[int, Settings]


def axes(base: Settings) -> list[Axis]:
    """Safety tokens, vocabulary, response tokens of a row, and ranks."""
    return [
        Axis("safety tokens, K", {k: replace(base, tokens=k) for k in (16, 50, 200, 1000)}),
        Axis("vocabulary", {v: replace(base, vocab_size=v) for v in (32_000, 128_000, 256_000)}),
        Axis(
            "response tokens of a row",
            {n: replace(base, batch=1, length=2 * n) for n in (64, 256, 1024, 4096)},
        ),
        Axis("ranks", {n: replace(base, ranks=n, threads=1) for n in (1, 2)}),
    ]


Measured = dict[str, dict[int, dict[str, Kind]]]
"""Axis -> its value -> kind of step."""


def measure_growth(base: Settings, folder: Path, report: Report) -> Measured:
    """Every point of every axis."""
    found: Measured = {}
    for axis in axes(base):
        found[axis.name] = {}
        for value, settings in axis.points.items():
            report(f"{axis.name} {value}")
            found[axis.name][value] = measure(settings, folder, lambda what: None)
    return found


def write(path: Path, machine: dict[str, Any], base: Settings, found: Measured) -> None:
    """As JSON."""
    content = {
        "format": "pact-growth",
        "version": 1,
        "machine": machine,
        "settings": asdict(base) | asdict(base.sizes),
        "axes": {
            name: {
                str(value): {kind: asdict(measured) for kind, measured in kinds.items()}
                for value, kinds in points.items()
            }
            for name, points in found.items()
        },
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


HEADINGS = ("axis", "value", "step", "step, s", "time ratio", "peak memory, MiB", "memory ratio")


def rows(found: Measured) -> list[tuple[str, ...]]:
    """Lines of a table."""
    return [
        (
            name,
            str(value),
            kind,
            f"{measured.seconds.median:.3f}",
            f"{measured.time_ratio.median:.3f}",
            "" if measured.peak_bytes is None else f"{measured.peak_bytes / 2**20:.0f}",
            "" if measured.memory_ratio is None else f"{measured.memory_ratio:.3f}",
        )
        for name, points in found.items()
        for value, kinds in points.items()
        for kind, measured in kinds.items()
    ]


def picture(base: Settings, machine: dict[str, Any], found: Measured, path: Path) -> None:
    """Seconds and memory of plain and constrained steps, one column for each axis."""
    figure = Figure(figsize=(3.6 * len(found), 6.4), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False)
    colours = dict(zip([PLAIN, *base.modes], (charts.FRAME, charts.TIME, charts.MEMORY), strict=False))
    for column, (name, points) in enumerate(found.items()):
        for kind, colour in colours.items():
            seconds = [kinds[kind].seconds.median for kinds in points.values()]
            memory = [(kinds[kind].peak_bytes or 0) / 2**20 for kinds in points.values()]
            style = "--" if kind == PLAIN else "-"
            for panel, heights in ((panels[0, column], seconds), (panels[1, column], memory)):
                panel.plot(list(points), heights, style, marker="o", color=colour, label=kind)
        for panel, label in (
            (panels[0, column], "seconds of a step"),
            (panels[1, column], "peak memory, MiB"),
        ):
            if name != "ranks":
                panel.set_xscale("log", base=2)
            panel.set_xticks(list(points), labels=[_short(value) for value in points])
            panel.minorticks_off()
            panel.set_ylim(0, 1.08 * panel.dataLim.ymax)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
        panels[1, column].set_xlabel(name)
    figure.suptitle(f"{charts.title(base)}\n{charts.machine_line(machine)}", fontsize=10, x=0.01, ha="left")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(path)


def _short(value: int) -> str:
    return f"{value // 1000}k" if value >= 10_000 else str(value)
