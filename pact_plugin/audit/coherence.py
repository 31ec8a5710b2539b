"""Are the candidate's answers language at all? How likely the aligned reference finds them."""

from __future__ import annotations

from collections.abc import Sequence

from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.audit.measures import Coherence

UNLIKELY = -5.0
"""Nats per token: people's answers are above, word salad below (docs/audit.md)."""


def coherence(reference: Sequence[float | None], candidate: Sequence[float | None]) -> Coherence | None:
    """Summarise the mean log-likelihoods of answers; None if all answers of a side are empty."""
    own, theirs = ([one for one in side if one is not None] for side in (reference, candidate))
    if not own or not theirs:
        return None
    low, high = bootstrap(theirs, [1] * len(theirs))
    return Coherence(
        reference=round(sum(own) / len(own), 4),
        candidate=round(sum(theirs) / len(theirs), 4),
        low=round(low, 4),
        high=round(high, 4),
        answers=len(theirs),
        unlikely=sum(one < UNLIKELY for one in theirs),
        reference_unlikely=sum(one < UNLIKELY for one in own),
        bound=UNLIKELY,
    )
