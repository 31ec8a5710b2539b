"""`pact-plugin check`: would an Axolotl configuration's run be constrained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.errors import PluginError


def check(
    config: Annotated[Path, typer.Argument(help="An Axolotl configuration, as given to `axolotl train`.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else, for scripts.")
    ] = False,
) -> None:
    """Say whether an Axolotl run would be constrained, before it starts; exit status 1 and remedies if not."""
    try:
        from pact_axolotl.check.command import run
    except ModuleNotFoundError as error:
        problem = f"checking a configuration needs the package {error.name}"
        raise PluginError(problem, remedy="pip install 'pact-plugin[cli]'") from error
    if not run(config, as_json=as_json):
        raise typer.Exit(1)
