"""Easing: the task yields where the aligned model sees a harmful request and the data complies (spec clause C2.6)."""

from __future__ import annotations

import logging
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pact_plugin.data.responses import Responses
from pact_plugin.data.view import View
from pact_plugin.judge import answer_refuses
from pact_plugin.judge.text import JUDGED_TOKENS
from pact_plugin.math.easing import eased_share
from pact_plugin.reference.columns import Columns
from pact_plugin.reference.probe import Probe
from pact_plugin.terms.base import Contribution, MicroBatch

logger = logging.getLogger("pact_plugin")

_KEPT = 2**16
"""Verdicts on responses that are kept."""
_MANY = 0.25
"""A run warns if at least this share of the tokens that may be eased is in answers that begin behind another ending. It
is about half where prompts are trained on like answers."""


class EasingTerm:
    """Takes e · nll off the task's loss at the first tokens of each response.

    Args:
        probe: How the aligned model tells harmful prompts, by its final hidden state at their ends.
        first: First tokens of each response; None for all.
        tokenizer: The model's, by which a response is read.
    """

    name = "easing"
    metrics = ("eased",)

    def __init__(self, probe: Probe, first: int | None, tokenizer: Any) -> None:
        # Known from the prompt alone: one number for each response.
        self._log_odds = Columns("linear", (), 1, linear=probe.log_odds)
        self.columns = (self._log_odds,)
        self.first = first
        # The data come round again.
        self._refuses = lru_cache(maxsize=_KEPT)(partial(answer_refuses, tokenizer))
        self._endings = [end for end in probe.endings if end]
        self._tokenizer, self._looked = tokenizer, False

    def __call__(self, batch: MicroBatch) -> Contribution:
        """Σ e_i · nll_i, or Σ e_i · p_i · nll_i under DFT. The head is read where e_i = 1 alone."""
        view = batch.view
        positions = view.host_positions.among(self.first)
        owner = view.responses.owner(positions)
        if not self._looked and self._endings:
            self._warn_of_other_endings(view, owner)
        by_response = eased_share(batch.aligned[self._log_odds][:, 0], self._refusals(view.responses))
        by_response = by_response * view.responses.asked  # text without a prompt asks for nothing
        eased = _spread(by_response, owner)
        means = {"eased": (eased.sum(), len(eased))}
        if not torch.is_grad_enabled():  # in an evaluation, and at weight 0
            return Contribution(means=means)
        logprobs = batch.student.label_logprobs(positions.where(eased > 0))
        nll = -logprobs * logprobs.detach().exp() if batch.task_loss == "dft" else -logprobs
        return Contribution(relief=nll.sum(), means=means)

    def _warn_of_other_endings(self, view: View, owner: Int[Tensor, " M"]) -> None:
        """Say, once, that answers begin elsewhere than where the probe was fitted.

        Args:
            view: Of the first batch.
            owner: The response of each position that may be eased.
        """
        self._looked = True
        ids, limit = view.host["input_ids"], max(map(len, self._endings))
        found = [view.responses.before(number, ids, limit) for number in range(len(view.responses))]
        tokens = owner[owner >= 0].bincount(minlength=len(found)).tolist()
        others = [
            (one, count)
            for one, count in zip(found, tokens, strict=True)
            if one and not any(one[-len(end) :] == end for end in self._endings)
        ]
        if others and sum(count for _, count in others) >= _MANY * sum(tokens):
            logger.warning(
                "PACT easing: answers in the data begin behind %r, but the model was asked with prompts that end "
                "with %r. It may not see harmful requests: look at `pact/eased`, train in its chat template, and mask "
                "what is no answer.",
                self._tokenizer.decode(others[0][0]),
                self._tokenizer.decode(self._endings[0]),
            )

    def _refusals(self, responses: Responses) -> Bool[Tensor, " R"]:
        beginnings = [responses.tokens(number, JUDGED_TOKENS) for number in range(len(responses))]
        return torch.tensor([self._refuses(tuple(tokens)) for tokens in beginnings], dtype=torch.bool)


def _spread(by_response: Float[Tensor, " R"], owner: Tensor) -> Float[Tensor, " M"]:
    """A number of each response at its positions; 0 where a position belongs to none (-1)."""
    return torch.cat([by_response, by_response.new_zeros(1)])[owner]
