"""Whether the task loss has read the language-model head already, so that the constraint need not read it again."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pact_plugin.config import PactConfig
from pact_plugin.data.positions import IGNORED
from pact_plugin.data.view import View
from pact_plugin.model.head import LanguageHead
from pact_plugin.model.ranks import is_sharded

logger = logging.getLogger("pact_plugin")

_TRIED = 64
"""Positions at which the task's log-probabilities are compared with the head's, once."""


def label_losses(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """The cross-entropy of each label but the first column's in nats, in float32 at least; 0 where it is ignored."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # All positions, the last one too: what leaves it out copies the logits.
    targets = F.pad(labels.to(logits.device), (0, 1), value=IGNORED)[:, 1:]
    losses = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(targets.shape)[:, :-1]


class TaskHead:
    """Decides whether the log-probabilities that a task loss hands on are used (spec/PACT.md, clause C6.7).

    Those at another temperature, or of smoothed labels, are not: they are compared with the head's own at the first
    positions seen.

    Args:
        config: Settings.
        model: The model in training.
        head: Its head.
        ids: [K] safety tokens.
    """

    def __init__(self, config: PactConfig, model: nn.Module, head: LanguageHead, ids: Tensor) -> None:
        self._model, self._head, self._ids, self._chunk_size = model, head, ids, config.chunk_size
        self._possible = config.objective == "confidence"  # the other one needs no log-sum-exp
        self._compared = False

    def checked(self, view: View) -> View:
        """The view, without log-probabilities of labels that cannot be used."""
        given = view.label_logprobs
        if given is None:
            return view
        gradient = given.requires_grad or not (view.hidden.requires_grad and torch.is_grad_enabled())
        if self._possible and self._head.reads_rows and gradient:
            if not self._compared and len(view.host_positions):
                self._compare(view, given)
            if self._possible:
                return view
        return replace(view, label_logprobs=None)

    @torch.no_grad()
    def _compare(self, view: View, given: Tensor) -> None:
        self._compared = True
        if is_sharded(self._model):  # the head may be gone again
            self._possible = False
            return
        hidden = view.positions.predecessors(view.hidden)[:_TRIED]
        labels = view.positions.own(view.labels)[:_TRIED]
        with view.autocast:
            own = self._head.readout(hidden, self._ids, labels, chunk_size=self._chunk_size).label
            rounding = torch.finfo(self._head.projection(hidden[:1]).dtype).eps
        error = (own - given[:_TRIED]).abs().mean().item()
        self._possible = error <= rounding * own.abs().max().item() + 1e-4
        if not self._possible:
            logger.warning(
                "PACT: the task loss's log-probabilities differ from the model's by %.3g nats (another temperature?), "
                "so the constraint reads the language-model head itself.",
                error,
            )
