"""Easing: the task yields where the aligned model sees a harmful request and the data complies (spec clause C2.6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pact_plugin.data.documents import to_device
from pact_plugin.data.responses import Responses
from pact_plugin.math.easing import eased_share
from pact_plugin.model.linear import Linear
from pact_plugin.reference.columns import Columns
from pact_plugin.reference.pool import ANSWER
from pact_plugin.terms.base import Contribution, MicroBatch

_KEPT = 2**16
"""Verdicts on responses that are kept."""


class EasingTerm:
    """Takes e · nll off the task's loss at the first tokens of each response.

    Args:
        log_odds: That a prompt is harmful, of the aligned model's final hidden state at its end.
        first: First tokens of each response; None for all.
        refuses: Whether a response, by the ids of its first tokens, is a refusal.
    """

    name = "easing"
    metrics = ("eased",)

    def __init__(
        self, log_odds: Linear, first: int | None, refuses: Callable[[tuple[int, ...]], bool]
    ) -> None:
        # Known from the prompt alone: one number for each response.
        self._log_odds = Columns("linear", (), 1, linear=log_odds)
        self.columns = (self._log_odds,)
        self.first = first
        # The data come round again.
        self._refuses = lru_cache(maxsize=_KEPT)(refuses)

    def __call__(self, batch: MicroBatch) -> Contribution:
        """Σ e_i · nll_i, or Σ e_i · p_i · nll_i under DFT."""
        view = batch.view
        where, device = view.within(self.first), view.hidden.device
        refusals = to_device(self._refusals(view.responses), device)
        by_response = eased_share(batch.aligned[self._log_odds][:, 0], refusals)
        owner = to_device(view.responses.owner(view.host_positions.among(self.first)), device)
        eased = _spread(by_response, owner)
        logprobs = batch.student.label_logprobs[where]
        share = eased * logprobs.detach().exp() if batch.task_loss == "dft" else eased
        return Contribution(relief=-(share * logprobs).sum(), means={"eased": (eased.sum(), eased.shape[0])})

    def _refusals(self, responses: Responses) -> Bool[Tensor, " R"]:
        found = [self._refuses(tuple(responses.tokens(number, ANSWER))) for number in range(len(responses))]
        return torch.tensor(found, dtype=torch.bool)


def _spread(by_response: Float[Tensor, " R"], owner: Tensor) -> Float[Tensor, " M"]:
    """A number of each response at its positions; 0 where a position belongs to none (-1)."""
    return torch.cat([by_response, by_response.new_zeros(1)])[owner]
