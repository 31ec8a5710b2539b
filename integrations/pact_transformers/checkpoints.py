"""Which checkpoint a run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def checkpoint_of(named: Any, folder: str | Path | None, *, looks: bool = False) -> Path | None:
    """The checkpoint that a run goes on from: the one that is named, or else the last one in a folder.

    Args:
        named: The value of `resume_from_checkpoint`; `true` is the last one in the folder.
        folder: The output folder; None where it is not known.
        looks: Whether a framework looks in it where nothing is named.
    """
    if not (named is True or (named is None and looks)):
        return Path(named) if named else None
    if folder is None or not Path(folder).is_dir():
        return None
    from transformers.trainer_utils import get_last_checkpoint

    found = get_last_checkpoint(str(folder))
    return None if found is None else Path(found)


def checkpoint_of_run(args: Any) -> Path | None:
    """What a trainer's arguments say that the run goes on from."""
    return checkpoint_of(args.resume_from_checkpoint, args.output_dir)
