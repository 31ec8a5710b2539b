"""From hidden states to divergences: one objective each, over the same view of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from pact_plugin.config import PactConfig
from pact_plugin.data.view import View
from pact_plugin.math.confidence import confidence_divergence, eased_share, published_divergence
from pact_plugin.model.head import LanguageHead
from pact_plugin.reference.passes import Aligned
from pact_plugin.run.meter import Sums


@dataclass(frozen=True)
class Evaluated:
    """An objective at N response positions; `divergence` and `label_logprob` carry gradients."""

    divergence: Float[Tensor, " N"]
    safety_mass: Float[Tensor, " N"]
    safety_mass_reference: Float[Tensor, " N"]
    eased: Float[Tensor, " N"]
    label_logprob: Float[Tensor, " N"] | None
    trained: Int[Tensor, ""]

    def sums(self) -> Sums:
        """What the metrics are made of, without gradient."""
        return Sums(
            divergence=self.divergence.detach().sum(),
            safety_mass=self.safety_mass.detach().sum(),
            safety_mass_reference=self.safety_mass_reference.sum(),
            eased=self.eased.sum(),
            positions=self.divergence.shape[0],
            tokens=self.trained,
        )


def evaluate(
    config: PactConfig, head: LanguageHead, aligned: Aligned, view: View, ids: Tensor, weights: Tensor
) -> Evaluated:
    """The objective that a configuration names.

    Args:
        config: Settings.
        head: The model in training.
        aligned: What the aligned model predicts at the view's positions.
        view: A forward pass of the model in training.
        ids: [K] safety tokens.
        weights: [K] their weights (published).
    """
    if config.objective == "published":
        settings = config.published.divergence
        return published(head, aligned, view, ids, weights, config.chunk_size, settings)
    return confidence(head, aligned, view, ids, config.chunk_size, ease=config.eases)


def confidence(
    head: LanguageHead, aligned: Aligned, view: View, ids: Tensor, chunk_size: int, *, ease: bool
) -> Evaluated:
    """The confidence objective (spec/PACT.md, clause C2)."""
    positions = view.positions
    labels = positions.own(view.labels)
    hidden = positions.predecessors(view.hidden)
    label: Tensor
    if view.label_logprobs is None:
        read = head.readout(hidden, ids, labels, chunk_size=chunk_size)
        logprobs, log_rest, label = read.logprobs, read.log_rest, read.label
        divergence = confidence_divergence(logprobs, aligned.values, log_rest, aligned.log_rest)
    else:
        label = view.label_logprobs
        with view.autocast:  # the task's own, so that both round alike
            logprobs = head.beside(hidden, ids, labels, label)
        divergence = confidence_divergence(logprobs, aligned.values, None, aligned.log_rest)
    in_safety = (labels[:, None] == ids).any(1)
    eased = eased_share(aligned.values, in_safety)
    return Evaluated(
        divergence=divergence,
        safety_mass=logprobs.detach().exp().sum(1),
        safety_mass_reference=aligned.values.exp().sum(1),
        eased=eased if ease else eased * 0,
        label_logprob=label,
        trained=positions.trained,
    )


def eased_task_loss(evaluated: Evaluated, task_loss: Literal["nll", "dft"]) -> Float[Tensor, ""]:
    """The part of the task's summed loss that yields: Σ e_i · nll_i, or Σ e_i · p_i · nll_i under DFT."""
    assert evaluated.label_logprob is not None
    share = evaluated.eased
    if task_loss == "dft":
        share = share * evaluated.label_logprob.detach().exp()
    return -(share * evaluated.label_logprob).sum()


def published(
    head: LanguageHead,
    aligned: Aligned,
    view: View,
    ids: Tensor,
    weights: Tensor,
    chunk_size: int,
    settings: Mapping[str, Any],
) -> Evaluated:
    """The published objective (spec/PACT.md, clause C3).

    Its masses are shares of the tokens with a positive weight among the safety tokens: the objective does not see
    the rest of the vocabulary.
    """
    positions = view.positions
    student = head.safety_logits(positions.predecessors(view.hidden), ids, chunk_size=chunk_size)
    divergence = published_divergence(
        student, aligned.values, aligned.post, weights, positions.index, **settings
    )
    wanted = (weights > 0).to(student.dtype)
    return Evaluated(
        divergence=divergence,
        safety_mass=student.detach().softmax(1) @ wanted,
        safety_mass_reference=aligned.values.softmax(1) @ wanted,
        eased=divergence.detach() * 0,
        label_logprob=None,
        trained=positions.trained,
    )
