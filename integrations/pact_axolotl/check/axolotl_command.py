"""`axolotl pact-check CONFIG.yml`: the check as a command of Axolotl's (entry-point group `axolotl.cli_commands`)."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pact_plugin.errors import PactError


@click.command(short_help="say whether a run would be constrained by PACT")
@click.argument("config", type=click.Path(path_type=Path))
def pact_check(config: Path) -> None:
    """Say whether a run would be constrained by PACT, before it starts.

    Exit status 1, with a remedy for every reason, where it would not. For scripts there is `pact-plugin check --json`:
    Axolotl prints its logo before any command's output.
    """
    from pact_axolotl.check.command import run

    try:
        constrained = run(config, python=sys.executable)
    except PactError as error:
        raise click.ClickException(str(error)) from error
    if not constrained:
        raise SystemExit(1)
