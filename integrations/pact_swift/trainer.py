"""PACT around ms-swift's trainer for supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from pact_transformers.checkpoints import checkpoint_of_run
from pact_transformers.errors import unconstrainable, weighted_loss
from pact_transformers.mixin import PactTrainerMixin, constrain, trainer_parts
from pact_transformers.resuming import store_beside
from swift.template import Template
from swift.trainers import Seq2SeqTrainer
from torch import Tensor

from pact_plugin.constraint import Constraint
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.spec import TrainerParts
from pact_swift.problems import UNEASED


class PactSwiftMixin(PactTrainerMixin):
    """The mixin for a trainer that cuts labels down to the logits that it keeps, before its loss is computed."""

    _pact_labels: Tensor

    def prepare_logits_to_keep(self, inputs: dict[str, Any]) -> None:
        """Keep the labels of whole rows, which the constraint reads."""
        self._pact_labels = inputs["labels"]
        super().prepare_logits_to_keep(inputs)  # type: ignore[misc]

    def _pact_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if inputs.get("loss_scale") is not None and self.pact.config.eases:
            raise weighted_loss("loss_scale", None, UNEASED)
        batch = super()._pact_batch(inputs)
        if "logits_to_keep" in inputs:
            batch["labels"] = self._pact_labels
        if "text_position_ids" in inputs:
            batch["position_ids"] = inputs["text_position_ids"]
        return batch


def swift_parts(trainer: Any, folder: str | None) -> TrainerParts:
    """The parts of ms-swift's trainer for supervised fine-tuning.

    A resumed run writes into another folder than the run that it goes on with, but reads that one's table.

    Raises:
        AdapterError: It is another trainer, or set up in a way that cannot be constrained.
    """
    if not isinstance(trainer, Seq2SeqTrainer):
        raise unconstrainable(
            "this trainer's loss is not a next-token cross-entropy",
            "trainer",
            type(trainer).__name__,
            "Train with `swift sft` or `swift pt`, or remove PACT's plugin.",
        )
    return trainer_parts(trainer, folder or store_beside(checkpoint_of_run(trainer.args)))


def constrain_swift(trainer: Seq2SeqTrainer, constraint: Constraint) -> Seq2SeqTrainer:
    """Constrain ms-swift's trainer in place (see `constrain`).

    Raises:
        AdapterError: Easing is on, and the task loss is the template's, the user's own or smoothed.
    """
    template = type(trainer.template)
    if constraint.config.eases and template.compute_sft_loss is not Template.compute_sft_loss:
        raise AdapterError(
            "this template computes a loss of its own, but easing needs a plain next-token cross-entropy",
            key="template",
            value=template.__name__,
            remedy=f"Use another `template`, or {UNEASED}.",
        )
    # Its own override is the mean of the next-token cross-entropy; what it weights by is refused in `problems`.
    return constrain(trainer, constraint, Seq2SeqTrainer, mixin=PactSwiftMixin)
