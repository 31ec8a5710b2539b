"""The checkpoint that a run would go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pact_axolotl.settings import output_of


def checkpoint_of(cfg: Mapping[str, Any]) -> Path | None:
    """The checkpoint that Axolotl would resume from: the one named, or else the last one if that is asked for."""
    named = cfg.get("resume_from_checkpoint")
    if named is not None:
        return Path(str(named)) if named else None
    if not cfg.get("auto_resume_from_checkpoints"):
        return None
    found = {
        int(path.name.split("-")[-1]): path
        for path in output_of(cfg).glob("checkpoint-*")
        if path.name.split("-")[-1].isdigit()
    }
    return found[max(found)] if found else None
