"""What the command line prints on, and its progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from pact_plugin.errors import PactError

if TYPE_CHECKING:
    from pact_plugin.data.generation import Progress


class Console(rich.console.Console):
    """Falls silent when nobody reads on, as behind `| head`, and lets the command write its files nevertheless."""

    def on_broken_pipe(self) -> None:
        """See `rich.console.Console`, which would end the program."""
        with suppress(SystemExit):
            super().on_broken_pipe()


def print_error(error: PactError, kind: str = "error") -> None:
    """One line in red on standard error."""
    _print_line(f"{kind}: {error}", "bold red")


def print_warning(text: str) -> None:
    """One line in yellow on standard error."""
    _print_line(f"warning: {text}", "yellow")


def _print_line(text: str, style: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False)


def accept_every_character() -> None:
    """Where the output's encoding lacks a character, as ASCII does, print `?` in its place."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def progress_bars(console: rich.console.Console) -> Iterator[Progress]:
    """A callback (done, total, description) that draws one bar, with the time left, for each description."""
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
    )
    tasks: dict[str, TaskID] = {}
    with ProgressBars(*columns, console=console) as bars:

        def report(done: int, total: int, description: str) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done)

        yield report
