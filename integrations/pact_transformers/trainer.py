"""PACT around the plain `transformers.Trainer`."""

from __future__ import annotations

from transformers import Trainer

from pact_plugin.constraint import Constraint
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.spec import TrainerParts
from pact_transformers.mixin import constrain, foreign_loss, require_plain_task_loss, trainer_parts


def causal_parts(trainer: Trainer, folder: str | None) -> TrainerParts:
    """The parts of a Trainer of a causal language model (see `trainer_parts`).

    Raises:
        AdapterError: The model is another kind, or the trainer is set up in a way that cannot be constrained.
    """
    parts = trainer_parts(trainer, folder)
    if getattr(getattr(parts.model, "config", None), "is_encoder_decoder", False):
        raise AdapterError(
            "an encoder-decoder model's labels are not its inputs' next tokens",
            key="model",
            value=type(parts.model).__name__,
            remedy="Train a causal language model.",
        )
    return parts


def constrain_trainer(trainer: Trainer, constraint: Constraint) -> Trainer:
    """Constrain a Trainer in place.

    Raises:
        AdapterError: Easing is on, and the loss is not the model's own.
    """
    own_loss = trainer.compute_loss_func is not None
    require_plain_task_loss(trainer, constraint, own_loss=own_loss, foreign=foreign_loss(trainer, Trainer))
    return constrain(trainer, constraint)
