"""`python -m benchmarks`: what the constraint costs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import charts, machine, result
from benchmarks.overhead import measure
from benchmarks.settings import Settings, default_modes
from benchmarks.shapes import SHAPES
from pact_plugin.cli.console import print_error
from pact_plugin.errors import PactError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What the constraint costs.")
OUTPUT = Path("benchmark-output")
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]


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
        typer.Option(
            help="[published/]REFERENCE[@FIRST_N], such as stored, stored@64, published/adapter_off; repeatable. "
            "By default every reference that there is."
        ),
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
        modes=tuple(mode or default_modes(train)),
        batch=batch,
        length=length,
        tokens=tokens,
        cycles=cycles,
        warmup=warmup,
        ranks=ranks,
        device=place,
        dtype=dtype or ("float32" if place == "cpu" else "bfloat16"),
        threads=threads or torch.get_num_threads(),
        gradient_checkpointing=gradient_checkpointing,
    )
    run_overhead(
        [replace(settings, response_share=share) for share in response_share or [0.5]], output, memory=memory
    )


def run_overhead(measured: list[Settings], output: Path, *, memory: bool) -> list[result.Run]:
    """Measure settings that differ in the share of the response; write JSON, a picture and a Markdown table."""
    console = Console(highlight=False)
    first = measured[0]
    about = machine.describe(first.threads, first.device)
    if about["busy"]:
        console.print(
            f"warning: other processes are computing (load average {about['load_at_start']}); times will vary",
            style="yellow",
        )
    output.mkdir(parents=True, exist_ok=True)
    runs = []
    with console.status("") as status:
        for settings in measured:
            said = f"{settings.shape}, {settings.response_share:.0%} response: "
            kinds = measure(
                settings, output / "scratch", lambda what, said=said: status.update(said + what), memory=memory
            )
            runs.append((settings, kinds))
    name = f"overhead-{first.shape}-{first.train}-{first.loss}" + (f"-{first.ranks}" if first.ranks > 1 else "")
    result.write(output / f"{name}.json", about, runs)
    charts.picture(runs, about, output / f"{name}.png")
    (output / f"{name}.md").write_text(charts.markdown(charts.HEADINGS, charts.rows(runs)) + "\n")
    console.print(charts.table(runs))
    console.print(f"{output}/{name}.json, .png, .md")
    return runs


def main() -> None:
    """The command line; errors of pact-plugin are one line in red."""
    try:
        app()
    except PactError as error:
        print_error(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
