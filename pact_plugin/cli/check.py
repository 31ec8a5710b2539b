"""`pact-plugin check`: would a configuration's run be constrained?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pact_plugin.errors import PluginError
from pact_plugin.hooks.manager import find_config_check
from pact_plugin.hooks.spec import ConfigCheck


def check(
    config: Annotated[
        Path,
        typer.Argument(help="A configuration of Axolotl, ms-swift or LLaMA-Factory."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else, for scripts.")
    ] = False,
) -> None:
    """Say whether a run would be constrained, before it starts; exit status 1 and remedies if not."""
    if not would_be_constrained(config, as_json=as_json):
        raise typer.Exit(1)


def would_be_constrained(config: Path, *, as_json: bool = False) -> bool:
    """Check a configuration by the one integration that can, which prints its report.

    Raises:
        PluginError: No integration is installed that can, or it lacks a package.
    """
    reader = reader_of(config)
    with _missing_packages_named():
        return bool(reader.run(config, as_json))


def reader_of(config: Path) -> ConfigCheck:
    """The check that reads a configuration.

    Raises:
        PluginError: There is none, more than one, or a package is missing.
    """
    with _missing_packages_named():
        return find_config_check(config)


@contextmanager
def _missing_packages_named() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        problem = f"checking a configuration needs the package {error.name}"
        raise PluginError(problem, remedy="pip install 'pact-plugin[cli]'") from error
