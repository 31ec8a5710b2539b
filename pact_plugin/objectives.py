"""From hidden states to divergences: one objective each, over the same view of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from pact_plugin.head import LanguageHead
from pact_plugin.losses import confidence_divergence, eased_share, published_divergence
from pact_plugin.promptfree import prompt_free_batch
from pact_plugin.reference import Reference
from pact_plugin.responses import ResponsePositions


@dataclass(frozen=True)
class View:
    """One forward pass of the model in training."""

    hidden: Float[Tensor, "B T d"]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    """What the decoder was called with; the reference is called with the same."""
    positions: ResponsePositions
    labels: Int[Tensor, "B T"]


@dataclass(frozen=True)
class Evaluated:
    """An objective at N response positions; `divergence` and `label_logprob` carry gradients."""

    divergence: Float[Tensor, " N"]
    safety_mass: Float[Tensor, " N"]
    safety_mass_reference: Float[Tensor, " N"]
    eased: Float[Tensor, " N"]
    label_logprob: Float[Tensor, " N"] | None
    trained: Int[Tensor, ""]


def confidence(
    head: LanguageHead, reference: Reference, view: View, ids: Tensor, chunk_size: int, *, ease: bool
) -> Evaluated:
    """The confidence objective (spec/PACT.md, clause C2)."""
    positions = view.positions
    labels = positions.own(view.labels)
    with reference.session():
        states = positions.predecessors(reference.hidden(view.args, view.kwargs))
        aligned = reference.head.readout(
            states, ids, labels, chunk_size=chunk_size, project=reference.project
        )
    student = head.readout(positions.predecessors(view.hidden), ids, labels, chunk_size=chunk_size)
    divergence = confidence_divergence(student.logprobs, aligned.logprobs, student.log_rest, aligned.log_rest)
    in_safety = (labels[:, None] == ids).any(1)
    eased = eased_share(aligned.logprobs, in_safety)
    return Evaluated(
        divergence=divergence,
        safety_mass=student.logprobs.detach().exp().sum(1),
        safety_mass_reference=aligned.logprobs.exp().sum(1),
        eased=eased if ease else eased * 0,
        label_logprob=student.label,
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
    reference: Reference,
    view: View,
    ids: Tensor,
    weights: Tensor,
    header: list[int],
    chunk_size: int,
    settings: Mapping[str, Any],
) -> Evaluated:
    """The published objective (spec/PACT.md, clause C3): a second reference pass without the prompt.

    Its masses are shares of the tokens with a positive weight among the safety tokens: the objective does not see
    the rest of the vocabulary.
    """
    positions = view.positions
    input_ids = view.args[0] if view.args else view.kwargs["input_ids"]
    batch, row, column = prompt_free_batch(input_ids, positions, header)
    with reference.session():
        states = positions.predecessors(reference.hidden(view.args, view.kwargs))
        aligned = reference.safety_logits(states, ids, chunk_size)
        states = reference.hidden((), batch)[row, column]
        post = reference.safety_logits(states, ids, chunk_size)
    student = head.safety_logits(positions.predecessors(view.hidden), ids, chunk_size=chunk_size)
    divergence = published_divergence(student, aligned, post, weights, positions.index, **settings)
    wanted = weights > 0
    return Evaluated(
        divergence=divergence,
        safety_mass=student.detach().softmax(1)[:, wanted].sum(1),
        safety_mass_reference=aligned.softmax(1)[:, wanted].sum(1),
        eased=divergence.detach() * 0,
        label_logprob=None,
        trained=positions.trained,
    )
