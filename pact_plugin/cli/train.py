"""`pact-plugin train`: check a configuration, train by it, and verify the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.cli.check import reader_of, would_be_constrained
from pact_plugin.cli.console import Console
from pact_plugin.cli.verify import verify
from pact_plugin.errors import PluginError, ReceiptError
from pact_plugin.hooks.manager import offered


def train(
    config: Annotated[Path, typer.Argument(help="A configuration of Axolotl or LLaMA-Factory.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- LAUNCHER ARGUMENTS]", help="After `--`, for Axolotl's launcher, as they are."
        ),
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="As of `axolotl train`: accelerate, torchrun or python.")
    ] = None,
) -> None:
    """Check a configuration, train by it, and verify the run: exit status 0 if all of it was constrained.

    Nothing is trained where the check finds a reason against it. Other options of the trainer are not taken: what is
    trained is what the file says.
    """
    command = offered("pact_train_commands").get(reader_of(config).name)
    if command is None:
        raise PluginError(
            "no plugin trains by this configuration",
            key="config",
            value=str(config),
            remedy="Train with the framework's own command, then `pact-plugin verify`.",
        )
    if not would_be_constrained(config):
        raise typer.Exit(1)
    output = command.output(config)
    before = _written(output)
    status = command.run(config, launcher, arguments or [])
    if status:
        message = f"training ended with exit status {status}, so the run was not verified"
        Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="bold red", markup=False)
        raise typer.Exit(status)
    if before is not None and before == _written(output):
        raise ReceiptError(
            "the receipt there is an earlier run's: nothing shows that this run was constrained",
            key="output",
            value=str(output),
            remedy="See the log of the training: the plugin did not load, or wrote elsewhere.",
        )
    verify(output)


def _written(output: Path) -> tuple[int, int] | None:
    """Which file the receipt of an output folder is; every run writes it anew."""
    from pact_plugin.run.receipt import FILE_NAME

    receipt = output / FILE_NAME
    if not receipt.is_file():
        return None
    found = receipt.stat()
    return found.st_ino, found.st_mtime_ns
