"""Easing: the task yields where the aligned model would refuse and the data does not (spec/PACT.md, clause C2.6)."""

from __future__ import annotations

from pact_plugin.math.easing import eased_share
from pact_plugin.reference.columns import Columns
from pact_plugin.terms.base import Contribution, MicroBatch


class EasingTerm:
    """Takes e · nll off the task's loss at the first tokens of each response.

    Args:
        ids: The safety tokens.
        first: First tokens of each response; None for all.
    """

    name = "easing"
    metrics = ("eased",)

    def __init__(self, ids: tuple[int, ...], first: int | None) -> None:
        self._mass = Columns("log_mass", ids, first)
        self.columns = (self._mass,)

    def __call__(self, batch: MicroBatch) -> Contribution:
        """Σ e_i · nll_i, or Σ e_i · p_i · nll_i under DFT."""
        where = batch.view.within(self._mass.first)
        eased = eased_share(batch.aligned[self._mass][:, 0], batch.student.label_in_safety[where])
        logprobs = batch.student.label_logprobs[where]
        share = eased * logprobs.detach().exp() if batch.task_loss == "dft" else eased
        return Contribution(relief=-(share * logprobs).sum(), means={"eased": (eased.sum(), eased.shape[0])})
