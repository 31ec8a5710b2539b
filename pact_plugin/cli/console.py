"""How errors of pact-plugin are printed."""

from __future__ import annotations

from rich.console import Console

from pact_plugin.errors import PactError


def print_error(error: PactError, kind: str = "error") -> None:
    """One line in red on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{kind}: {error}", style="bold red", markup=False
    )
