"""`python -m benchmarks measures`, `chosen`, `along` and `shift`: what a model that came aligned is like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.field.along import sizes_of
from benchmarks.field.command import FOLDER, console, one_of, quiet, sources
from benchmarks.field.kept import write_whole
from benchmarks.field.methods import METHODS, method_of
from benchmarks.field.settings import PRECISIONS, SPLITS, TASKS, Cell, Sizes
from benchmarks.field.start import load
from pact_plugin import PactConfig

Model = Annotated[str, typer.Option(help="Path or hub id of the model that came aligned.")]
Methods = Annotated[
    list[str], typer.Option(help="METHOD or METHOD@STRENGTH, whose adapters are there; repeatable.")
]
Folder = Annotated[Path | None, typer.Option(help="As for field.")]
Files = Annotated[list[str] | None, typer.Option(help="As for field.")]
Text = Annotated[str, typer.Option(help="As for field.")]
Share = Annotated[float, typer.Option(min=0.0, max=1.0, help="As for field.")]
Threads = Annotated[int, typer.Option(min=1, help="Of the CPU.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs and the results.")]


def measures(
    model: Model,
    data_folder: Folder = None,
    data: Files = None,
    count: Annotated[int, typer.Option(min=8, help="Prompts of each set.")] = 150,
    answers: Annotated[bool, typer.Option(help="Whether the model answers the sets, too.")] = True,
    dtype: Text = "bfloat16",
    threads: Threads = 1,
    output: Output = FOLDER,
) -> None:
    """How well each measure of a model tells harmful requests from others, before any training."""
    from benchmarks.field.measures import MEASURES, measured, table

    torch.set_num_threads(threads)
    quiet()
    start = load(Sizes(model, dtype=one_of(PRECISIONS, dtype, "dtype")), output)
    found, seconds = measured(start, sources(data_folder, data), count, answers=answers)
    lines = [table(found), "", *(f"- {name}: {text}" for name, text in MEASURES.items() if name in found), ""]
    lines += [f"- {name}: {value:.0f} s" for name, value in seconds.items()]
    lines.append(f"- AUC over the pool, each prompt left out once: {start.asked.probe.auc:.3f}")
    plain = {name: one.plain() for name, one in found.items()}
    write_whole(
        output / "measures.json", {"model": model, "count": count, "seconds": seconds, "measures": plain}
    )
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def chosen(
    model: Model,
    dtype: Text = "bfloat16",
    threads: Threads = 1,
    output: Output = FOLDER,
) -> None:
    """What `pact: true` chooses of a model: safety tokens, P(S) along refusals, anchors."""
    from benchmarks.field.chosen import HEAD, line
    from benchmarks.field.chosen import chosen as choose

    torch.set_num_threads(threads)
    quiet()
    start = load(Sizes(model, dtype=one_of(PRECISIONS, dtype, "dtype")), output)
    found, name = choose(start), Path(model).name
    write_whole(output / "chosen.json", {"model": name, **found.plain()})
    console.print(f"{HEAD}\n{line(name, found)}", markup=False, soft_wrap=True)


def along(
    model: Model,
    method: Methods,
    task: Text = "alpaca",
    contamination: Share = 0.1,
    seed: Annotated[int, typer.Option(help="Of the runs.")] = 0,
    split: Text = "held-out",
    threads: Threads = 1,
    output: Output = FOLDER,
) -> None:
    """P(S) along the aligned model's refusals, before and after; the runs must be there."""
    from benchmarks.field.along import along as measure_along

    torch.set_num_threads(threads)
    quiet()
    base = Cell(one_of(TASKS, task, "task"), contamination, seed=seed)
    cells = [_named(base, one) for one in method]
    start = load(sizes_of(output, model), output)
    found = measure_along(start, one_of(SPLITS, split, "split"), cells, console.print)
    write_whole(
        output / "along.json", {"model": Path(model).name, "seed": seed, "split": split, "models": found}
    )
    for name, line in found.items():
        shown = " ".join(f"{one['mean']:.2f}" for one in line)
        console.print(f"{name:>24}  {shown}", markup=False, soft_wrap=True)


def shift(
    model: Model,
    method: Methods,
    data_folder: Folder = None,
    data: Files = None,
    task: Text = "alpaca",
    contamination: Share = 0.1,
    seed: Annotated[list[int] | None, typer.Option(help="Of the runs; repeatable, by default 0.")] = None,
    split: Text = "development",
    ask: Annotated[int, typer.Option(min=2, help="Prompts of each set, at most.")] = 100,
    threads: Threads = 1,
    output: Output = FOLDER,
) -> None:
    """How far P(S) at the first word of an answer has moved, by set of prompts; the runs must be there."""
    from benchmarks.field.shift import sets_of, shifts

    torch.set_num_threads(threads)
    quiet()
    base = Cell(one_of(TASKS, task, "task"), contamination)
    cells = [replace(_named(base, one), seed=number) for one in method for number in seed or [0]]
    start = load(replace(sizes_of(output, model), ask=ask), output)
    sets = sets_of(start, sources(data_folder, data), one_of(SPLITS, split, "split"))
    found = shifts(start, sets, cells, console.print)
    write_whole(output / "shift.json", {"model": Path(model).name, "split": split, "runs": found})
    for run, of_sets in found.items():
        console.print(run, markup=False)
        for name, one in of_sets.items():
            moved = f"{one['shift']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
            counted = f"median P(S) before {one['before']:.2f}, {one['prompts']} prompts"
            console.print(f"{name:>20}  {moved}   {counted}", markup=False, soft_wrap=True)


def _named(base: Cell, method: str) -> Cell:
    """The run of METHOD@STRENGTH; without a strength that of its usual one, for settings under a name the default's."""
    name, _, strength = method.partition("@")
    usual = method_of(name).strength if name.partition("+")[0] in METHODS else PactConfig().weight
    return replace(base, method=name, strength=float(strength) if strength else usual)
