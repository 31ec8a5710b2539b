"""What a run that goes on from a checkpoint takes from it."""

from __future__ import annotations

from pathlib import Path

from pact_plugin.config import PactConfig
from pact_plugin.run.receipt import TOKENS_FILE
from pact_plugin.tokens.safety_tokens import SafetyTokens
from pact_transformers.fill import FOLDER


def resumed(config: PactConfig, checkpoint: str | None) -> PactConfig:
    """The settings of a run that goes on from a checkpoint: tokens that it chose when it began are not chosen again."""
    path = Path(checkpoint or "") / TOKENS_FILE
    if config.safety_tokens is not None or not checkpoint or not path.is_file():
        return config
    return config.model_copy(update={"safety_tokens": SafetyTokens.load(path)})


def store_beside(checkpoint: str | None) -> str | None:
    """The table of the run that a checkpoint belongs to; None if there is none."""
    folder = Path(checkpoint or "").parent / FOLDER
    return str(folder) if checkpoint and folder.is_dir() else None
