"""The checkpoint that a run would go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ANEW = "begin a new run, with another `output_dir` or with `overwrite_output_dir: true`"
"""What keeps LLaMA-Factory from going on from what lies in the output folder."""


def checkpoint_of(arguments: Mapping[str, Any]) -> str | None:
    """The checkpoint that is named, or else the last one in the output folder, where LLaMA-Factory looks by itself.

    Args:
        arguments: LLaMA-Factory's.
    """
    named = arguments.get("resume_from_checkpoint")
    if named is not None:
        return str(named) if named else None
    folder = Path(str(arguments.get("output_dir") or "trainer_output"))  # transformers' default
    if arguments.get("overwrite_output_dir") or not arguments.get("do_train") or not folder.is_dir():
        return None
    from transformers.trainer_utils import get_last_checkpoint

    found: str | None = get_last_checkpoint(str(folder))
    return found
