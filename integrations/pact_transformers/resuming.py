"""Constrains a trainer that a framework has built, and reads what a resumed run needs from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pact_plugin.assemble import attach
from pact_plugin.config import PactConfig
from pact_plugin.reference.choose import STORE
from pact_plugin.run.receipt import TOKENS_FILE
from pact_plugin.tokens.safety_tokens import SafetyTokens


def resumed(config: PactConfig, checkpoint: Path | None) -> PactConfig:
    """The settings of a run that goes on from a checkpoint: tokens that it chose when it began are not chosen again."""
    if config.safety_tokens is not None or checkpoint is None or not (checkpoint / TOKENS_FILE).is_file():
        return config
    return config.model_copy(update={"safety_tokens": SafetyTokens.load(checkpoint / TOKENS_FILE)})


def attach_and_say(
    trainer: Any, config: PactConfig, checkpoint: Path | None, say: Callable[[str], None]
) -> None:
    """Constrain a trainer that a framework has built, and say by what.

    Args:
        trainer: The trainer.
        config: Settings.
        checkpoint: What the run goes on from, if from anything.
        say: Writes a line into the framework's log.

    Raises:
        PactError: The trainer, the model, the safety tokens and the reference do not fit.
    """
    config = resumed(config, checkpoint)
    if config.safety_tokens is None:
        say("PACT: choosing the safety tokens from the model's own answers, once; this can take minutes.")
    attach(trainer, config)
    begins = "constrained" if config.weight else "measured with weight 0, NOT constrained"
    say(f"PACT: {begins}; {trainer.pact.record.receipt}")


def store_beside(checkpoint: Path | None) -> str | None:
    """The table of the run that a checkpoint belongs to; None if there is none."""
    folder = None if checkpoint is None else checkpoint.parent / STORE
    return str(folder) if folder is not None and folder.is_dir() else None
