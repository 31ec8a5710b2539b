"""`python -m benchmarks`: what the constraint costs, and what it keeps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import commands
from benchmarks.field.command import field
from benchmarks.field.model_commands import along, chosen, measures, shift
from benchmarks.settings import MODES, Settings
from benchmarks.shapes import SHAPES
from benchmarks.taught.teach import taught
from pact_plugin.cli.console import print_error
from pact_plugin.errors import PactError

COUNTED = ("easing", "anchors", *MODES, "hold@64", "easing+anchors+hold", "hold/step@16", "published")
"""Ways to constrain that are counted; `default` is `pact: true`."""
MODE = (
    "default, published, or some of easing, anchors and hold joined by +; then /table, read before training, the "
    "default, /step, the reference in each step, or /model, a second model there; then @N, the first tokens. "
    "Such as hold/step@64"
)
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="What the constraint costs, and what it keeps."
)
OUTPUT = Path("benchmark-output")
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]


Clock = Annotated[
    str,
    typer.Option(
        help="wall, or cpu: the process's processor time, for a machine that others use (1 thread)."
    ),
]


@app.callback()
def _commands() -> None:
    """A command of several."""


@app.command()
def overhead(
    shape: Annotated[str, typer.Option(help=f"Of the model: {', '.join(SHAPES)}.")] = "tiny",
    train: Annotated[str, typer.Option(help="lora (all linear layers) or full.")] = "lora",
    loss: Annotated[
        str, typer.Option(help="chunked: TRL's SFTTrainer; full: the plain Trainer, with full logits.")
    ] = "chunked",
    mode: Annotated[
        list[str] | None,
        typer.Option(help=f"{MODE}; repeatable. By default {', '.join(MODES)}."),
    ] = None,
    response_share: Annotated[
        list[float] | None, typer.Option(help="Share of a row that is response; repeatable. By default 0.5.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Rows; by default the shape's.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a row; by default the shape's.")] = None,
    tokens: Annotated[int, typer.Option(help="Safety tokens, K.")] = 50,
    cycles: Annotated[int, typer.Option(help="Measured steps of each kind.")] = 9,
    warmup: Annotated[int, typer.Option(help="Steps of each kind before.")] = 2,
    ranks: Annotated[int, typer.Option(help="Processes.")] = 1,
    device: Annotated[str | None, typer.Option(help="By default a CUDA GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="By default bfloat16 on a GPU, float32 on a CPU.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; by default torch's.")] = None,
    clock: Clock = "wall",
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, one process for each kind.")] = True,
    output: Output = OUTPUT,
) -> None:
    """Time and peak memory of a constrained step as ratios to the same plain step."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(
        shape=shape,
        train=train,
        loss=loss,
        modes=tuple(mode or MODES),
        batch=batch,
        length=length,
        tokens=tokens,
        cycles=cycles,
        warmup=warmup,
        ranks=ranks,
        device=place,
        dtype=dtype or ("float32" if place == "cpu" else "bfloat16"),
        threads=threads or torch.get_num_threads(),
        clock=clock,
        gradient_checkpointing=gradient_checkpointing,
    )
    commands.run_overhead(
        [replace(settings, response_share=share) for share in response_share or [0.5]], output, memory=memory
    )


@app.command()
def growth(
    mode: Annotated[list[str] | None, typer.Option(help="As for overhead; by default hold.")] = None,
    cycles: Annotated[int, typer.Option(help="Measured steps of each kind.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; by default torch's.")] = None,
    clock: Clock = "wall",
    output: Output = OUTPUT,
) -> None:
    """Time and memory against K, the vocabulary, the length of the response and the ranks."""
    modes = tuple(mode or ["hold"])
    threads = threads or torch.get_num_threads()
    settings = Settings(shape="growth", modes=modes, cycles=cycles, warmup=1, threads=threads, clock=clock)
    commands.run_growth(settings, output)


@app.command()
def tables(
    threads: Annotated[int | None, typer.Option(help="Of the CPU; by default torch's.")] = None,
    cycles: Annotated[int, typer.Option(help="Measured steps of each kind.")] = 5,
    clock: Clock = "wall",
    output: Output = OUTPUT,
) -> None:
    """Every table and picture of benchmarks/README.md that a CPU can make."""
    few = ("default", "default/step")
    threads = threads or torch.get_num_threads()
    base = Settings(shape="135m", cycles=cycles, warmup=1, threads=threads, clock=clock)
    half = replace(base, modes=MODES)
    quarter, whole = (replace(base, modes=few, response_share=share) for share in (0.25, 1.0))
    commands.run_overhead([quarter, half, whole], output)
    commands.run_overhead([replace(base, modes=few, loss="full")], output)
    commands.run_overhead([replace(base, modes=few, train="full")], output)
    commands.run_overhead([replace(base, shape="tiny", modes=MODES, cycles=2 * cycles)], output)
    growth(None, cycles, threads, clock, output)
    profile_operators("135m", "default", threads, output)
    count_operations(None, None, None, output=output)


@app.command("count")
def count_operations(
    shape: Annotated[list[str] | None, typer.Option(help="Repeatable; by default 1b and 8b.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="As for overhead; by default each.")] = None,
    response_share: Annotated[
        list[float] | None, typer.Option(help="Share of a row that is response; repeatable. By default 0.5.")
    ] = None,
    eased: Annotated[int, typer.Option(min=0, help="Responses of a step that are eased.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    output: Output = OUTPUT,
) -> None:
    """Operations and bytes of a step, without a GPU."""
    commands.run_counts(
        [
            Settings(
                shape=name,
                train=train,
                loss=loss,
                modes=tuple(mode or COUNTED),
                response_share=share,
                dtype=dtype,
            )
            for share in response_share or [0.5]
            for name in shape or ["1b", "8b"]
            for train in ("lora", "full")
            for loss in ("chunked", "full")
        ],
        output,
        eased,
    )


@app.command("peaks")
def count_peaks(
    shape: Annotated[list[str] | None, typer.Option(help="Repeatable; by default 1b and 8b.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    output: Output = OUTPUT,
) -> None:
    """Memory of a step with anchors in the batch's backward pass and in one of their own, without a GPU."""
    commands.run_peaks(
        [
            Settings(shape=name, train=train, dtype=dtype, modes=(), gradient_checkpointing=checkpointing)
            for name in shape or ["1b", "8b"]
            for train in ("lora", "full")
            for checkpointing in (False, True)
        ],
        output,
    )


@app.command("profile")
def profile_operators(
    shape: Annotated[str, typer.Option(help="Of the model.")] = "135m",
    mode: Annotated[str, typer.Option(help="As for overhead.")] = "default",
    threads: Annotated[int | None, typer.Option(help="By default torch's.")] = None,
    output: Output = OUTPUT,
) -> None:
    """The constraint's operators in one step on the CPU."""
    commands.run_profile(Settings(shape=shape, threads=threads or torch.get_num_threads()), mode, output)


app.command()(field)
app.command()(taught)
app.command()(measures)
app.command()(chosen)
app.command()(along)
app.command()(shift)


def main() -> None:
    """The command line; errors of pact-plugin are one line in red."""
    try:
        app()
    except PactError as error:
        print_error(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
