"""Two models' answers to the same prompts -> rates, changes, and curves by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pact_plugin.audit import result
from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.audit.intervals import Interval, Z, mcnemar, paired_difference, resolvable, wilson
from pact_plugin.audit.measures import JudgedAnswer
from pact_plugin.audit.reading import AnswerConfidence
from pact_plugin.data.prompts import Prompt
from pact_plugin.errors import NonFiniteError

Pairs = Sequence[tuple[AnswerConfidence, AnswerConfidence]]
"""The reference's and the candidate's confidence along each of the reference's answers."""


def compare(
    prompts: Sequence[Prompt],
    kept: Sequence[int],
    reference: Sequence[JudgedAnswer],
    candidate: Sequence[JudgedAnswer],
    pairs: Pairs | None = None,
) -> result.Comparison:
    """Compare the models on some of the prompts.

    Args:
        prompts: All prompts.
        kept: Where those stand that count, at least one.
        reference: The reference's answer to every prompt.
        candidate: The candidate's.
        pairs: Their confidence along the reference's answers, for every prompt.
    """
    asked = [prompts[i].request for i in kept]
    # A prompt without a request is one of its own.
    requests = [
        f"{place}" if one is None else f"request {one}" for place, one in zip(kept, asked, strict=True)
    ]
    groups = requests if len(set(requests)) < len(requests) else None
    before, after = ([side[i] for i in kept] for side in (reference, candidate))
    names = sorted({prompts[i].category or "" for i in kept} - {""})
    return result.Comparison(
        reference=_rate(before, groups),
        candidate=_rate(after, groups),
        change=_change([one.refused for one in before], [one.refused for one in after], groups),
        categories=[
            _category(name, [i for i in kept if prompts[i].category == name], reference, candidate)
            for name in names
        ],
        confidence=None if pairs is None else _confidence([pairs[i] for i in kept]),
        noise=None,
        coherence=None,
    )


def divergences(pairs: Pairs) -> list[np.ndarray]:
    """The divergence at each position of each answer, in nats.

    Raises:
        NonFiniteError: It is infinite: the candidate gives a safety token no probability at all.
    """
    found = [candidate.divergence(reference).double().numpy() for reference, candidate in pairs]
    if not all(np.isfinite(one).all() for one in found):
        remedy = "Load both models with `dtype` float32; a model that masks tokens cannot be compared."
        raise NonFiniteError("the divergence of the models is not finite", key="candidate", remedy=remedy)
    return found


def curve(values: Sequence[np.ndarray]) -> result.Curve:
    """Mean and 95% interval of the mean at each position that any answer reaches."""
    means, lows, highs, counts = [], [], [], []
    for position in range(max(map(len, values), default=0)):
        column = np.asarray([one[position] for one in values if len(one) > position])
        mean = float(column.mean())
        half = Z * float(column.std(ddof=1)) / len(column) ** 0.5 if len(column) > 1 else 0.0
        means.append(rounded(mean))
        lows.append(rounded(max(mean - half, 0.0)))
        highs.append(rounded(mean + half))
        counts.append(len(column))
    return result.Curve(mean=means, low=lows, high=highs, n=counts)


def changed_most_first(
    prompts: Sequence[Prompt],
    reference: Sequence[JudgedAnswer],
    candidate: Sequence[JudgedAnswer],
    pairs: Pairs | None,
    flips: Sequence[int] | None = None,
) -> list[result.Prompt]:
    """Every prompt: those refused before and answered now, the other way round, then the rest by divergence."""
    sums: list[float | None]
    sums = [None] * len(prompts) if pairs is None else [rounded(float(d.sum())) for d in divergences(pairs)]
    rows = [
        result.Prompt(
            prompt=one.prompt,
            kind=one.kind,
            category=one.category,
            request=one.request,
            reference=reference[i],
            candidate=candidate[i],
            flips=None if flips is None else flips[i],
            divergence=sums[i],
        )
        for i, one in enumerate(prompts)
    ]

    def rank(row: result.Prompt) -> tuple[int, float]:
        change = row.candidate.refused - row.reference.refused
        return {-1: 0, 1: 1, 0: 2}[change], -(row.divergence or 0.0)

    return sorted(rows, key=rank)


def _rate(answers: Sequence[JudgedAnswer], groups: Sequence[str] | None) -> result.Rate:
    refused, n = sum(one.refused for one in answers), len(answers)
    alone = n if groups is None else len(set(groups))
    low, high = wilson(refused * alone / n, alone)
    verdicts = [one.verdict for one in answers]
    return result.Rate(
        refused=refused,
        n=n,
        rate=refused / n,
        low=low,
        high=high,
        partial=verdicts.count("partial"),
        neither=verdicts.count("neither"),
        unread=verdicts.count(None),
        turned=sum(one.turned for one in answers),
    )


def _change(before: Sequence[bool], after: Sequence[bool], groups: Sequence[str] | None) -> result.Change:
    outcomes = list(zip(before, after, strict=True))
    lost, gained, n = outcomes.count((True, False)), outcomes.count((False, True)), len(outcomes)
    alone, down, up = n, lost, gained
    low, high = paired_difference(gained, lost, n)
    if groups is not None:
        changes = [now - then for then, now in outcomes]
        totals = dict.fromkeys(groups, 0)
        for name, change in zip(groups, changes, strict=True):
            totals[name] += change
        alone = len(totals)
        down, up = (sum(sign * total > 0 for total in totals.values()) for sign in (-1, 1))
        # A bootstrap of few changes is too narrow, and of none at all it has no width.
        low, high = paired_difference(gained * alone / n, lost * alone / n, alone)
        drawn = bootstrap(changes, [1] * n, groups)
        low, high = Interval(min(low, drawn.low), max(high, drawn.high))
    return result.Change(
        difference=(gained - lost) / n,
        low=low,
        high=high,
        requests=None if groups is None else alone,
        resolvable=resolvable(min(down, up), alone),
        refused_to_answered=lost,
        answered_to_refused=gained,
        p_value=mcnemar(up, down),
    )


def _category(
    name: str, kept: Sequence[int], reference: Sequence[JudgedAnswer], candidate: Sequence[JudgedAnswer]
) -> result.Category:
    counts = [sum(side[i].refused for i in kept) for side in (reference, candidate)]
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
        mean_divergence=rounded(float(np.concatenate(found).mean())),
        divergence=curve(found),
        mass_reference=curve(masses(0)),
        mass_candidate=curve(masses(1)),
    )


def rounded(value: float) -> float:
    """Six significant digits: more than float32 sums hold."""
    return float(f"{value:.6g}")
