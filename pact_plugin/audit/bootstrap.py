"""Intervals of means over things that hang together: requests in several styles, tokens of one answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from pact_plugin.audit.intervals import CONFIDENCE, Interval

RESAMPLES = 10_000
_AT_A_TIME = 2_000_000
"""Numbers that are drawn at a time."""


def bootstrap(
    totals: Sequence[float],
    counts: Sequence[float],
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The percentile bootstrap interval of Σ totals / Σ counts, resampled by group.

    Args:
        totals: One for each of n things, at least one.
        counts: How much each weighs, such as its tokens; their sum is positive.
        groups: What each belongs to; things of one group are drawn together. By default each is its own.
    """
    names = range(len(totals)) if groups is None else groups
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    owner = np.asarray([places[name] for name in names])
    sums = [np.bincount(owner, np.asarray(of, dtype=float), len(places)) for of in (totals, counts)]
    random = np.random.default_rng(0)
    found: list[np.ndarray] = []
    step = max(1, _AT_A_TIME // len(places))
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(len(places), size=(min(step, RESAMPLES - start), len(places)))
        total, count = (of[drawn].sum(1) for of in sums)
        found.append(total[count > 0] / count[count > 0])
    ends = np.quantile(np.concatenate(found), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(ends[0]), float(ends[1]))
