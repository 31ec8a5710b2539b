"""`python -m benchmarks preservation`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pact_transformers.loading import SMOLLM2
from rich.console import Console

from benchmarks.preservation.methods import COMPARED, METHODS
from benchmarks.preservation.prompts import Split
from benchmarks.preservation.settings import PRESETS, Cell, Sizes, cells
from pact_plugin.cli.tokens_view import progress_bars
from pact_plugin.data.generation import Progress
from pact_plugin.errors import ConfigError

console = Console(highlight=False)


def preservation(
    preset: Annotated[str, typer.Option(help=f"Size of each run: {', '.join(PRESETS)}.")] = "full",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Repeatable; by default all but the last {len(METHODS) - len(COMPARED)}: {', '.join(METHODS)}."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="tickets, orders, dates or requests; repeatable. By default the first two."),
    ] = None,
    contamination: Annotated[
        list[float] | None,
        typer.Option(help="Share of harmful requests; repeatable. By default 0, 0.05, 0.1 and 0.3."),
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option(help="lora or full; repeatable. By default both.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable; by default 0, 1 and 2.")] = None,
    items: Annotated[
        int | None, typer.Option(min=1, help="Training items of each run, instead of the preset's.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="At its highest, instead of the preset's for LoRA and full.")
    ] = None,
    curves: Annotated[
        bool, typer.Option(help="Every strength of each method, not only its usual one.")
    ] = True,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Of each method that has one, instead of its usual one and its curve; repeatable."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Path or hub id of the aligned model; smollm2: with the demo's adapter.")
    ] = SMOLLM2,
    align: Annotated[
        bool,
        typer.Option("--align", help="Teach the model to refuse first; smollm2 by the adapter kept here."),
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="With --align: train that adapter too, for half an hour on a CPU.")
    ] = False,
    guard: Annotated[
        str | None,
        typer.Option(help="Path or hub id of a guard model that answers safe or unsafe: a third judge."),
    ] = None,
    development: Annotated[
        bool,
        typer.Option("--development", help="Ask the development prompts, on which settings may be tuned."),
    ] = False,
    device: Annotated[str | None, typer.Option(help="By default a GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="By default bfloat16 where the device is fast at it.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write the report again.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "benchmark-output/preservation"
    ),
) -> None:
    """What becomes of refusals, by method. Goes on where an interrupted call stopped."""
    if preset not in PRESETS:
        raise ConfigError(
            "no such preset", key="preset", value=preset, remedy=f"There are: {', '.join(PRESETS)}."
        )
    sizes = PRESETS[preset]
    if items is not None:
        sizes = replace(sizes, items=items)
    if learning_rate is not None:
        sizes = replace(sizes, lora_rate=learning_rate, full_rate=learning_rate)
    wanted = cells(
        task or ["tickets", "orders"],
        contamination or [0.0, 0.05, 0.1, 0.3],
        train or ["lora", "full"],
        method or list(COMPARED),
        seed or [0, 1, 2],
        curves=curves and not strength,
        strengths=strength or (),
    )
    from benchmarks.preservation import report
    from benchmarks.preservation.guard import GuardJudge
    from benchmarks.preservation.judges import ClassifierJudge, DefaultJudge, Judge

    split: Split = "development" if development else "heldout"
    judges: list[Judge] = [DefaultJudge(), ClassifierJudge()]
    with progress_bars(console) as bars:
        if guard is not None:  # before anything is run, so that one that does not exist is known
            judges.append(GuardJudge(guard, device, bars=bars))
        if not report_only:
            _run(wanted, sizes, model, align, anew, device, dtype, split, output, bars)
        path = report.write(output, judges, split)
    console.print(path.read_text(encoding="utf-8"))
    console.print(f"{output}/: preservation.json, preservation.md and a plot for each setting")


def _run(
    wanted: list[Cell],
    sizes: Sizes,
    model: str,
    align: bool,
    anew: bool,
    device: str | None,
    dtype: str | None,
    split: Split,
    output: Path,
    bars: Progress,
) -> None:
    from datasets import disable_progress_bars
    from transformers.utils import logging

    from benchmarks.preservation.run import run
    from benchmarks.preservation.start import load_start
    from examples.demo.allocator import keep_freed_memory

    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    start = load_start(
        model,
        sizes,
        output / "start",
        align=align,
        anew=anew,
        device=device,
        dtype=dtype,
        bars=bars,
    )
    console.print(f"{len(wanted)} runs")
    run(wanted, sizes, start, output, bars, split=split)
