"""Folders that a command writes to, tried before the long part."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pact_plugin.errors import ConfigError


def make_folder(folder: Path) -> None:
    """Make the folder of `--output`, and try a file in it.

    Raises:
        ConfigError: It cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable("cannot be made", folder, error) from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable("cannot be written to", folder, error) from error


def _unusable(what: str, folder: Path, error: OSError) -> ConfigError:
    problem, remedy = f"{what} ({error})", "Name another folder."
    return ConfigError(problem, key="--output", value=str(folder), remedy=remedy)
