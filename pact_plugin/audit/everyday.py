"""Does the candidate still say what the reference says to everyday questions? KL divergence along its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.audit.compare import rounded
from pact_plugin.audit.measures import Everyday
from pact_plugin.audit.reading import Answers, states
from pact_plugin.data.generation import Done, silent
from pact_plugin.data.prompts import packaged
from pact_plugin.errors import NonFiniteError
from pact_plugin.model.head import LanguageHead, language_head

_CHUNK = 64
"""Positions whose logits are held at a time."""


def questions() -> tuple[str, ...]:
    """The bundled questions: benign, of everyday life, in several registers; requests only."""
    return tuple(row["prompt"] for row in packaged("everyday.jsonl"))


@dataclass(frozen=True)
class Kept:
    """What is kept of the reference: its answers, its states before their tokens, and its head.

    Its distributions over the vocabulary would take a hundred times as much memory. The head is the one layer of the
    reference that stays where it is when the reference is let go.
    """

    answers: Answers
    hidden: list[Float[Tensor, "R d"]]
    head: LanguageHead


def keep(model: Any, said: Answers, *, batch_size: int, report: Done = silent) -> Kept:
    """Read the reference's own answers.

    Raises:
        ModelStructureError: The model's head is of a kind that is not known.
    """
    head = language_head(model)
    hidden: list[Tensor] = []
    for batch in states(model, head, said.pairs(), batch_size=batch_size, report=report):
        hidden += batch.hidden.cpu().split(batch.counts)
    return Kept(said, hidden, replace(head, decoder=nn.Identity()))


def divergence(
    model: Any, questions: Sequence[list[int]], kept: Kept, *, batch_size: int, report: Done = silent
) -> list[float]:
    """KL(reference ‖ candidate) summed over the tokens of each of the reference's answers, in nats.

    Args:
        model: The candidate.
        questions: Token ids of the everyday questions, in its own chat format.
        kept: What was kept of the reference.
        batch_size: Answers at a time.
        report: Called with the number of answers done.

    Raises:
        ModelStructureError: The model's head is of a kind that is not known.
    """
    head = language_head(model)
    pairs = list(zip(questions, kept.answers.tokens, strict=True))
    sums: list[float] = []
    for batch in states(model, head, pairs, batch_size=batch_size, report=report):
        for own in batch.hidden.split(batch.counts):
            theirs = kept.hidden[len(sums)].to(own.device)
            chunks = zip(theirs.split(_CHUNK), own.split(_CHUNK), strict=True)
            sums.append(sum(float(_kl(kept.head.logits(p), head.logits(q))) for p, q in chunks if len(p)))
    return sums


def summary(kept: Kept, sums: Sequence[float]) -> Everyday | None:
    """The mean over tokens with its interval; None if the reference said nothing.

    Raises:
        NonFiniteError: It is infinite: the candidate gives no probability at all to a token that the reference may say.
    """
    counts = [len(answer) for answer in kept.answers.tokens]
    if not sum(counts):
        return None
    if not np.isfinite(sums).all():
        remedy = "Load both models with `dtype` float32, or give `everyday=False`."
        raise NonFiniteError("KL on the everyday questions is not finite", key="candidate", remedy=remedy)
    low, high = bootstrap(sums, counts)
    return Everyday(
        questions=sum(count > 0 for count in counts),
        tokens=sum(counts),
        kl=rounded(sum(sums) / sum(counts)),
        low=rounded(low),
        high=rounded(high),
    )


def _kl(reference: Float[Tensor, "N V"], candidate: Float[Tensor, "N W"]) -> Tensor:
    """Summed over N positions; where one vocabulary is padded further, its other rows belong to no token."""
    width = min(reference.shape[1], candidate.shape[1])
    p, q = (logits.float().log_softmax(-1)[:, :width] for logits in (reference, candidate))
    terms = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))
    return terms.sum().clamp(min=0.0)
