"""The checkpoint that a run would go on from, and whether it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_axolotl.settings import output_of
from pact_plugin.config import PactConfig
from pact_plugin.errors import PactError, ReceiptError
from pact_plugin.run.receipt import Receipt, differing


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


def resumption_problems(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    """Why a run could not go on from its checkpoint: no receipt there, or one of other settings."""
    checkpoint = checkpoint_of(cfg)
    if checkpoint is None or not checkpoint.is_dir():
        return
    try:
        earlier = Receipt.read(checkpoint)
    except ReceiptError as error:
        yield ReceiptError(
            error.problem,
            key="resume_from_checkpoint",
            value=str(checkpoint),
            remedy="Begin a new run, or resume from a checkpoint of a constrained one.",
        )
        return
    for key, ours, theirs in differing(config.summary(), earlier.config):
        yield ReceiptError(
            f"the checkpoint {checkpoint} was constrained with {theirs!r}",
            key=f"pact.{key}",
            value=ours,
            remedy="Resume with the settings of the run, or begin a new run.",
        )
