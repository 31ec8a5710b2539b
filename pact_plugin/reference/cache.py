"""Files that keep what a model was asked once, so that the next run of the same model need not ask it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pact_plugin.data.files import written_whole
from pact_plugin.errors import ConfigError, TokenFileError
from pact_plugin.model.ranks import broadcast_object, rank

logger = logging.getLogger("pact_plugin")

CACHE = "PACT_CACHE"
"""Environment variable that names the folder."""

_UNREADABLE = (SafetensorError, TokenFileError, OSError, KeyError, TypeError, ValueError)
"""What reading raises where there is no file, or not a whole one."""

T = TypeVar("T")


def cache_folder() -> Path:
    """Where the files are: `$PACT_CACHE`, else `pact_plugin` in the user's cache folder.

    Raises:
        ConfigError: There is no such folder.
    """
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pact_plugin"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder to keep the model's answers in",
            key=f"${CACHE}",
            remedy=f"Set ${CACHE} to a folder.",
        ) from error


@dataclass(frozen=True)
class Cache:
    """Where files are kept: in `cache_folder()`, and in a folder of the run, so that it can go on elsewhere.

    Args:
        beside: The run's; None where it has none.
    """

    beside: Path | None = None

    def kept(
        self, name: str, read: Callable[[Path], T], make: Callable[[], T], write: Callable[[Path, T], object]
    ) -> T:
        """What a file holds; or, where it cannot be read, what is made now. It then is in both folders.

        Every rank calls it, and gets what the first rank has read or made: what differs by rounding would choose other
        tokens and anchors on each. A file only saves time, so where it cannot be written a warning says so.

        Args:
            name: Of the file.
            read: Gives what a file holds; raises where there is none, or not a whole one.
            make: Called on every rank.
            write: Writes it into a file.
        """
        files = [folder / name for folder in (self.beside, cache_folder()) if folder is not None]
        found: T | None = None
        lacking = []
        for file in files:
            if found is None:
                try:
                    found = read(file)
                except _UNREADABLE:
                    lacking.append(file)
            elif not file.is_file():
                lacking.append(file)
        found = broadcast_object(found)
        if found is None:
            found, lacking = broadcast_object(make()), files
        for file in lacking if rank() == 0 else ():
            try:
                write(file, found)
            except (SafetensorError, OSError) as error:
                logger.warning(
                    "PACT: %s cannot be written (%s), so the next run may ask again. Name another folder with $%s.",
                    file,
                    error,
                    CACHE,
                )
        return found


NOWHERE_ELSE = Cache()
"""For what belongs to no run."""


def write_states(file: Path, hidden: Tensor, **metadata: str) -> None:
    """Write hidden states, whole or not at all, with texts by name."""
    with written_whole(file) as part:
        # `save_file` makes files that their owner alone may read, and a team may share the folder.
        part.write_bytes(serialize({"hidden": hidden}, metadata=metadata or None))


def read_states(file: Path) -> tuple[Tensor, dict[str, str]]:
    """What `write_states` wrote.

    Raises:
        SafetensorError, OSError: There is no file, or not a whole one.
    """
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor("hidden"), opened.metadata() or {}
