"""PACT around LLaMA-Factory's trainers for supervised fine-tuning and pretraining."""

from __future__ import annotations

from typing import Any

from llamafactory.train.pt.trainer import CustomTrainer
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from pact_transformers.checkpoints import checkpoint_of_run
from pact_transformers.errors import unconstrainable
from pact_transformers.mixin import constrain, trainer_parts
from pact_transformers.resuming import store_beside

from pact_plugin.constraint import Constraint
from pact_plugin.hooks.spec import TrainerParts

_KNOWN = (CustomSeq2SeqTrainer, CustomTrainer)


def llamafactory_parts(trainer: Any, folder: str | None) -> TrainerParts:
    """The parts of one of the trainers whose loss is the next token's.

    Raises:
        AdapterError: It is another trainer, has ASFT's loss, or is set up in a way that cannot be constrained.
    """
    asft = getattr(getattr(trainer, "finetuning_args", None), "use_asft_loss", False)
    if asft or not isinstance(trainer, _KNOWN):
        raise unconstrainable(
            "this trainer's loss is not a next-token cross-entropy",
            "trainer",
            "ASFT" if asft else type(trainer).__name__,
            "Set `stage: sft` or `pt`, without `use_asft_loss`, or train without PACT.",
        )
    return trainer_parts(trainer, folder or store_beside(checkpoint_of_run(trainer.args)))


def constrain_llamafactory(trainer: Any, constraint: Constraint) -> Any:
    """Constrain one of them in place (see `constrain`)."""
    # Their own overrides hand over to transformers, but for ASFT's.
    return constrain(trainer, constraint, *_KNOWN)
