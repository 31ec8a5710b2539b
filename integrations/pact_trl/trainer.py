"""PACT around TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

from pact_transformers.fill import FillTable
from pact_transformers.mixin import (
    PactTrainerMixin,
    constrain,
    foreign_loss,
    require_plain_task_loss,
    trainer_parts,
)
from trl import SFTTrainer
from trl.trainer import sft_trainer

from pact_plugin.assemble import PactConstraint
from pact_plugin.config import PactConfig
from pact_plugin.constraint import Constraint
from pact_trl.plugin import sft_classes


class PactSFTTrainer(PactTrainerMixin, SFTTrainer):
    """An SFTTrainer under a constraint.

    Args:
        *args: As for SFTTrainer.
        pact: Settings of the constraint.
        **kwargs: As for SFTTrainer.

    Raises:
        PactError: The settings, the tokens, the model and the reference do not fit.
    """

    def __init__(self, *args: Any, pact: PactConfig | dict[str, Any] | bool = True, **kwargs: Any) -> None:
        config = PactConfig.of(pact)
        super().__init__(*args, **kwargs)
        parts = trainer_parts(self, config.advanced.store)
        with parts.autocast():
            self.pact = PactConstraint(parts.model, parts.tokenizer, config, data=parts.data)
        _check(self, self.pact)
        self.add_callback(FillTable(self))


def constrain_sft(trainer: SFTTrainer, constraint: Constraint) -> SFTTrainer:
    """Constrain an SFTTrainer in place.

    Raises:
        AdapterError: Easing is on, and the task loss is not SFTTrainer's own.
    """
    _check(trainer, constraint)
    return constrain(trainer, constraint)


def _check(trainer: SFTTrainer, constraint: Constraint) -> None:
    # Before 1.10 TRL hands its own DFT loss to the Trainer as a `compute_loss_func`; the easing knows that one.
    own = trainer.compute_loss_func
    is_trl_dft = own is not None and own is getattr(sft_trainer, "dft_loss", None)
    require_plain_task_loss(
        trainer,
        constraint,
        own_loss=own is not None and not is_trl_dft,
        foreign=foreign_loss(trainer, *sft_classes(trainer)),
    )
