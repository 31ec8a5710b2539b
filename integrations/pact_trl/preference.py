"""PACT around TRL's DPOTrainer and KTOTrainer: anchors alone are held (spec/PACT.md, clause C10.6)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pact_transformers.ahead import backward_ahead
from pact_transformers.mixin import constrain, with_constraint
from pact_transformers.run_mixin import PactRunMixin

from pact_plugin.constraint import Constraint
from pact_plugin.terms.step import Step


class PactPreferenceMixin(PactRunMixin):
    """Adds the anchors to the loss of preferences; goes before the trainer in the bases.

    The trainer averages its loss over the micro-batches of a step and over the ranks, and so the anchors. Its
    evaluations stay as they are.
    """

    if TYPE_CHECKING:
        current_gradient_accumulation_steps: int

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The trainer's own loss, plus the anchors in training."""
        loss = partial(
            super().compute_loss,  # type: ignore[misc]
            model,
            inputs,
            return_outputs=return_outputs,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )
        if not self.model.training:
            return loss()
        step = Step(self.state.global_step + 1, micro_batches=self.current_gradient_accumulation_steps)
        anchors = partial(self.pact.anchor_loss, step, tokens=inputs["completion_mask"][:, 1:].sum())
        if self._pact_goes_ahead():
            part = backward_ahead(self, partial(anchors, apart=True), step)
            return with_constraint(loss(), part)
        return with_constraint(loss(), anchors())


def constrain_preferences(trainer: Any, constraint: Constraint) -> Any:
    """Constrain a trainer on preferences in place (see `constrain`)."""
    return constrain(trainer, constraint, mixin=PactPreferenceMixin)
