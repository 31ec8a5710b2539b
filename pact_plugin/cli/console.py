"""What the command line prints on."""

from __future__ import annotations

import sys
from contextlib import suppress

import rich.console

from pact_plugin.errors import PactError


class Console(rich.console.Console):
    """Falls silent where nobody reads any more, as behind `| head`: what is to be written is written all the same."""

    def on_broken_pipe(self) -> None:
        """See `rich.console.Console`, which would end the program."""
        with suppress(SystemExit):
            super().on_broken_pipe()


def print_error(error: PactError, kind: str = "error") -> None:
    """One line in red on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{kind}: {error}", style="bold red", markup=False
    )


def accept_every_character() -> None:
    """Where the output's encoding lacks a character, as ASCII does, print `?` in its place."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
