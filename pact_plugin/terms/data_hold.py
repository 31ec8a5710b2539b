"""Data hold: the confidence divergence at the data's own response positions, the paper's constraint (clause C4.1)."""

from __future__ import annotations

from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.reference.columns import Columns
from pact_plugin.terms.base import Contribution, MicroBatch


class DataHoldTerm:
    """Adds weight · Σ D_i over the response positions.

    Args:
        ids: The K safety tokens.
        first: First tokens of each response; None for all.
        weight: Factor of the divergence.
    """

    name = "hold_data"
    metrics = ("loss", "divergence")

    def __init__(self, ids: tuple[int, ...], first: int | None, weight: float) -> None:
        self._logprobs, self._log_rest = Columns("logprobs", ids, first), Columns("log_rest", ids, first)
        self.columns = (self._logprobs, self._log_rest)
        self.first = first
        self._weight = weight

    def __call__(self, batch: MicroBatch) -> Contribution:
        """See the class."""
        where = batch.view.within(self._logprobs.first)
        logprobs, log_rest = batch.student.safety
        divergence = confidence_divergence(
            logprobs[where],
            batch.aligned[self._logprobs],
            log_rest[where],
            batch.aligned[self._log_rest][:, 0],
        )
        total = divergence.sum()
        measured = total.detach().clamp(min=0)  # rounding can leave less
        return Contribution(
            penalty=self._weight * total, means={"divergence": (measured, divergence.shape[0])}
        )
