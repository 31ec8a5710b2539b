"""Measure, write JSON, a picture and a Markdown table, and print the table."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import charts, growth, machine, result
from benchmarks.costs import AnchorRows, Count
from benchmarks.counts import count
from benchmarks.overhead import Report, measure
from benchmarks.passes import peaks
from benchmarks.profiling import profile_step
from benchmarks.settings import PLAIN, Settings
from benchmarks.tables import markdown

console = Console(highlight=False)


def run_overhead(
    measured: list[Settings], output: Path, *, memory: bool = True, name: str | None = None
) -> list[result.Run]:
    """Settings that differ in the share of the response."""
    first = measured[0]
    about = _machine(first)
    name = name or f"overhead-{first.shape}-{first.train}-{first.loss}"
    runs: list[result.Run] = []
    with _status(f"{first.shape} {first.train} {first.loss}") as report:
        for settings in measured:
            runs.append((settings, measure(settings, output / "scratch", report, memory=memory)))
    output.mkdir(parents=True, exist_ok=True)
    result.write(output / f"{name}.json", about, runs)
    charts.picture(runs, about, output / f"{name}.png")
    _table(charts.title(first), charts.HEADINGS, charts.rows(runs), output / f"{name}.md")
    console.print(f"{output}/{name}.json, .png, .md")
    return runs


def run_growth(base: Settings, output: Path) -> None:
    """Every axis."""
    about = _machine(base)
    with _status("growth") as report:
        found = growth.measure_growth(base, output / "scratch", report)
    output.mkdir(parents=True, exist_ok=True)
    growth.write(output / "growth.json", about, base, found)
    growth.picture(base, about, found, output / "growth.png")
    _table(charts.title(base), growth.HEADINGS, growth.rows(found), output / "growth.md")


COUNT_HEADINGS = (
    "shape",
    "training",
    "loss",
    "response",
    "step",
    "TFLOP",
    "FLOP ratio",
    "of it anchors",
    "reading the data once",
    "1 epoch",
    "3 epochs",
    "held, MiB",
    "passing, MiB",
)
"""`FLOP ratio`: of a step to the plain one. `reading the data once`: before the first step, a share of a plain epoch.
`1 epoch`, `3 epochs`: ratio of the whole run, reading included."""


def run_counts(measured: list[Settings], output: Path, eased: int) -> None:
    """Operations and bytes, without running anything; `eased` responses of each step are eased."""
    lines: list[tuple[str, ...]] = []
    content = []
    for settings in measured:
        for name, counted in count(settings, eased=eased).items():
            kind = (settings.shape, settings.train, settings.loss, f"{settings.response_share:.0%}", name)
            lines.append((*kind, *_counted(name, counted)))
            about = asdict(settings) | asdict(settings.sizes)
            shares = {"anchor_share": counted.anchor_share, "reading_share": counted.reading_share}
            shares |= {f"run_ratio_{epochs}": counted.run_ratio(epochs) for epochs in (1, 3)}
            content.append(about | {"kind": name, "ratio": counted.ratio} | shares | asdict(counted))
    output.mkdir(parents=True, exist_ok=True)
    (output / "counts.json").write_text(json.dumps(content, indent=2) + "\n")
    _table("Counted, not measured", COUNT_HEADINGS, lines, output / "counts.md")


PEAK_HEADINGS = ("shape", "training", "checkpointing", "plain, MiB", "together, MiB", "apart, MiB")
"""`together`: anchors in the batch's backward pass; `apart`: in one of their own, before it. Above `plain`."""


def run_peaks(measured: list[Settings], output: Path) -> None:
    """Gradients and activations of a step, without running anything."""
    lines: list[tuple[str, ...]] = []
    content = []
    for settings in measured:
        found = peaks(settings, AnchorRows())
        above = (f"+{(one - found.plain) / 2**20:.0f}" for one in (found.together, found.apart))
        checkpointed = "yes" if settings.gradient_checkpointing else "no"
        lines.append((settings.shape, settings.train, checkpointed, f"{found.plain / 2**20:.0f}", *above))
        content.append(asdict(settings) | asdict(settings.sizes) | asdict(found))
    output.mkdir(parents=True, exist_ok=True)
    (output / "peaks.json").write_text(json.dumps(content, indent=2) + "\n")
    _table("Gradients and activations, counted", PEAK_HEADINGS, lines, output / "peaks.md")


def _counted(name: str, counted: Count) -> tuple[str, ...]:
    ratios = [
        counted.ratio,
        counted.anchor_share,
        counted.reading_share,
        counted.run_ratio(1),
        counted.run_ratio(3),
    ]
    shown = [f"{one:.3f}" if one else "" for one in ratios]
    return (
        f"{counted.flops / 1e12:.2f}",
        *(["1", "", "", "1", "1"] if name == PLAIN else shown),
        f"{counted.held_bytes / 2**20:.0f}",
        f"{counted.passing_bytes / 2**20:.0f}",
    )


def run_profile(settings: Settings, mode: str, output: Path, top: int = 12) -> None:
    """The constraint's operators in one step."""
    about = _machine(settings)
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    torch.set_num_threads(settings.threads)
    with _status("profile"), tempfile.TemporaryDirectory() as folder:
        found = profile_step(replace(settings, modes=(mode,)), mode, Path(folder))
    lines: list[tuple[str, ...]] = [("whole step", f"{found.step * 1e3:.1f}", "100%", "")]
    for name, spent in (("constraint, forward", found.forward), ("constraint, backward", found.backward)):
        lines.append((name, f"{spent * 1e3:.1f}", f"{spent / found.step:.1%}", ""))
    lines += [
        (name, f"{spent * 1e3:.1f}", f"{spent / found.step:.1%}", str(calls))
        for name, spent, calls in found.operators[:top]
    ]
    output.mkdir(parents=True, exist_ok=True)
    name = f"profile-{settings.shape}"
    (output / f"{name}.json").write_text(
        json.dumps({"machine": about, "settings": asdict(settings), "mode": mode} | asdict(found), indent=2)
        + "\n"
    )
    title = f"{charts.title(settings)}, {mode}"
    _table(title, ("operator of the constraint", "ms", "of the step", "calls"), lines, output / f"{name}.md")


def _machine(settings: Settings) -> dict[str, Any]:
    about = machine.describe(settings.threads, settings.device)
    if about["busy"]:
        load = about["load_at_start"]
        console.print(f"warning: other processes are computing (load average {load})", style="yellow")
        if settings.clock == "wall":
            console.print(
                "Times will vary. On a CPU, --clock cpu --threads 1 is little affected.", style="yellow"
            )
    return about


@contextmanager
def _status(what: str) -> Iterator[Report]:
    with console.status(what) as status:
        yield lambda now: status.update(f"{what}: {now}")


def _table(title: str, headings: tuple[str, ...], lines: list[tuple[str, ...]], path: Path) -> None:
    view = Table(title=title, title_justify="left", header_style="bold")
    for heading in headings:
        view.add_column(heading, overflow="fold")
    for cells in lines:
        view.add_row(*cells)
    console.print(view)
    path.write_text(markdown(headings, lines) + "\n", encoding="utf-8")
