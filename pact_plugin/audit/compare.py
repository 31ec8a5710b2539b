"""Two models' answers to the same prompts -> rates, changes, and curves by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pact_plugin.audit import result
from pact_plugin.audit.intervals import mcnemar, paired_difference, quantile, wilson
from pact_plugin.audit.reading import Answers, Confidence
from pact_plugin.data.prompts import AuditPrompt
from pact_plugin.errors import NonFiniteError

Pairs = Sequence[tuple[Confidence, Confidence]]
"""The reference's and the candidate's confidence along each of the reference's answers."""


def compare(
    prompts: Sequence[AuditPrompt],
    kept: Sequence[int],
    reference: Sequence[bool],
    candidate: Sequence[bool],
    pairs: Pairs | None = None,
) -> result.Comparison:
    """Compare the models on some of the prompts.

    Args:
        prompts: All prompts.
        kept: Where those stand that count, at least one.
        reference: Whether the reference refused, for every prompt.
        candidate: Whether the candidate did.
        pairs: Their confidence along the reference's answers, for every prompt.
    """
    before, after = ([refused[i] for i in kept] for refused in (reference, candidate))
    names = sorted({prompts[i].category or "" for i in kept} - {""})
    return result.Comparison(
        reference=_rate(before),
        candidate=_rate(after),
        change=_change(before, after),
        categories=[
            _category(name, [i for i in kept if prompts[i].category == name], reference, candidate)
            for name in names
        ],
        confidence=None if pairs is None else _confidence([pairs[i] for i in kept]),
    )


def divergences(pairs: Pairs) -> list[np.ndarray]:
    """The divergence at each position of each answer, in nats.

    Raises:
        NonFiniteError: It is infinite: the candidate gives a safety token no probability at all.
    """
    found = [candidate.divergence(reference).double().numpy() for reference, candidate in pairs]
    if not all(np.isfinite(one).all() for one in found):
        remedy = "Load both models with --dtype float32; a model that masks tokens cannot be compared."
        raise NonFiniteError("the divergence of the models is not finite", key="candidate", remedy=remedy)
    return found


def curve(values: Sequence[np.ndarray]) -> result.Curve:
    """Mean and 95% interval of the mean at each position that any answer reaches."""
    means, lows, highs, counts = [], [], [], []
    for position in range(max(map(len, values), default=0)):
        column = np.asarray([one[position] for one in values if len(one) > position])
        mean = float(column.mean())
        half = quantile() * float(column.std(ddof=1)) / len(column) ** 0.5 if len(column) > 1 else 0.0
        means.append(_rounded(mean))
        lows.append(_rounded(max(mean - half, 0.0)))
        highs.append(_rounded(mean + half))
        counts.append(len(column))
    return result.Curve(mean=means, low=lows, high=highs, n=counts)


def changed_most(
    prompts: Sequence[AuditPrompt], reference: Answers, candidate: Answers, pairs: Pairs | None
) -> list[result.Prompt]:
    """Every prompt: those refused before and answered now, the other way round, then the rest by divergence."""
    sums: list[float | None]
    sums = [None] * len(prompts) if pairs is None else [_rounded(float(d.sum())) for d in divergences(pairs)]
    rows = [
        result.Prompt(
            prompt=one.prompt,
            kind=one.kind,
            category=one.category,
            reference_answer=reference.texts[i],
            candidate_answer=candidate.texts[i],
            reference_refused=reference.refused[i],
            candidate_refused=candidate.refused[i],
            divergence=sums[i],
        )
        for i, one in enumerate(prompts)
    ]

    def rank(row: result.Prompt) -> tuple[int, float]:
        change = row.candidate_refused - row.reference_refused
        return {-1: 0, 1: 1, 0: 2}[change], -(row.divergence or 0.0)

    return sorted(rows, key=rank)


def _rate(refused: Sequence[bool]) -> result.Rate:
    count, n = sum(refused), len(refused)
    low, high = wilson(count, n)
    return result.Rate(refused=count, n=n, rate=count / n, low=low, high=high)


def _change(before: Sequence[bool], after: Sequence[bool]) -> result.Change:
    outcomes = list(zip(before, after, strict=True))
    lost, gained, n = outcomes.count((True, False)), outcomes.count((False, True)), len(outcomes)
    low, high = paired_difference(gained, lost, n)
    return result.Change(
        difference=(gained - lost) / n,
        low=low,
        high=high,
        refused_to_answered=lost,
        answered_to_refused=gained,
        p_value=mcnemar(gained, lost),
    )


def _category(
    name: str, kept: Sequence[int], reference: Sequence[bool], candidate: Sequence[bool]
) -> result.Category:
    counts = [sum(refused[i] for i in kept) for refused in (reference, candidate)]
    return result.Category(name=name, n=len(kept), reference_refused=counts[0], candidate_refused=counts[1])


def _confidence(pairs: Pairs) -> result.Confidence | None:
    found = divergences(pairs)
    tokens = sum(map(len, found))
    if not tokens:
        return None

    def masses(side: int) -> list[np.ndarray]:
        return [pair[side].mass.to(torch.float64).numpy() for pair in pairs]

    return result.Confidence(
        answers=sum(len(one) > 0 for one in found),
        tokens=tokens,
        mean_divergence=_rounded(float(np.concatenate(found).mean())),
        divergence=curve(found),
        mass_reference=curve(masses(0)),
        mass_candidate=curve(masses(1)),
    )


def _rounded(value: float) -> float:
    """Six significant digits: more than float32 sums hold."""
    return float(f"{value:.6g}")
