"""`pact-plugin check`: would an Axolotl configuration's run be constrained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.errors import PluginError
from pact_plugin.hooks.manager import one_offered


def check(
    config: Annotated[Path, typer.Argument(help="An Axolotl configuration, as given to `axolotl train`.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else, for scripts.")
    ] = False,
) -> None:
    """Say whether an Axolotl run would be constrained, before it starts; exit status 1 and remedies if not."""
    if not would_be_constrained(config, as_json=as_json):
        raise typer.Exit(1)


def would_be_constrained(config: Path, *, as_json: bool = False) -> bool:
    """Check a configuration by the one integration that can, which prints its report.

    Raises:
        PluginError: No integration is installed that can, or it lacks a package.
    """
    reader = one_offered(
        "pact_config_checks", "Install the integration of your trainer, such as pact_axolotl."
    )
    try:
        return bool(reader.run(config, as_json))
    except ModuleNotFoundError as error:
        problem = f"checking a configuration needs the package {error.name}"
        raise PluginError(problem, remedy="pip install 'pact-plugin[cli]'") from error
