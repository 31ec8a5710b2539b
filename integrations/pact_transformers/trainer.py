"""PACT around the plain `transformers.Trainer`."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from pact_plugin.constraint import PactConstraint
from pact_plugin.errors import AdapterError
from pact_transformers.mixin import constrain, foreign_loss, require_plain_task_loss, trainer_parts


def causal_parts(trainer: Trainer) -> tuple[Any, Any]:
    """The model and tokenizer of a Trainer of a causal language model.

    Raises:
        AdapterError: The model is another kind, or the trainer is set up in a way that cannot be constrained.
    """
    model, tokenizer = trainer_parts(trainer)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise AdapterError(
            "an encoder-decoder model's labels are not its inputs' next tokens",
            key="model",
            value=type(model).__name__,
            remedy="Train a causal language model.",
        )
    return model, tokenizer


def constrain_trainer(trainer: Trainer, constraint: PactConstraint) -> Trainer:
    """Constrain a Trainer in place.

    Raises:
        AdapterError: Easing is on, and the loss is not the model's own.
    """
    own_loss = trainer.compute_loss_func is not None
    require_plain_task_loss(trainer, constraint, own_loss=own_loss, foreign=foreign_loss(trainer, Trainer))
    return constrain(trainer, constraint)
