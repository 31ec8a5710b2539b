"""Counts of refusals with their uncertainty: one rate, and the change of a rate over the same prompts."""

from __future__ import annotations

from math import copysign, sqrt
from statistics import NormalDist
from typing import NamedTuple

from scipy.optimize import brentq
from scipy.stats import binomtest

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
"""How many standard errors a two-sided normal interval reaches: 1.96."""


class Interval(NamedTuple):
    """The ends of a two-sided confidence interval."""

    low: float
    high: float


def wilson(count: float, n: int) -> Interval:
    """The Wilson score interval of a proportion (Wilson, JASA 1927), which holds at 0 of n and n of n too.

    Args:
        count: Successes, from 0 to n; a fraction where they are means over groups.
        n: Trials, at least 1.
    """
    rate = count / n
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    # At the ends the formula gives 0 and 1 but for rounding.
    return Interval(centre - half if count else 0.0, centre + half if count < n else 1.0)


def paired_difference(gained: float, lost: float, n: int) -> Interval:
    """Tango's score interval of (gained - lost) / n, the change of a rate over the same n prompts.

    It inverts the score form of McNemar's test, so the two agree on whether the change is more than chance (up to
    the exactness of the test). It keeps its coverage with few prompts, and a width above 0 where nothing changed;
    an interval for two independent samples would waste the pairing. (Tango, Statistics in Medicine 1998.)

    Args:
        gained: Prompts that count after but not before; a fraction where they are means over groups.
        lost: Prompts that count before but not after, likewise.
        n: All prompts, or groups, at least 1.
    """
    estimate = (gained - lost) / n

    def score(difference: float) -> float:
        # The chance of a loss under this difference, by maximum likelihood.
        linear = -gained - lost + (2 * n - gained + lost) * difference
        constant = -lost * difference * (1 - difference)
        loss = (sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * loss + difference * (1 - difference))
        over = gained - lost - n * difference
        # At the ends of the range the variance is 0, and the score without bound; at the estimate it is 0.
        return over / sqrt(variance) if variance > 0 else copysign(1e3, over) if over else 0.0

    def where(target: float, low: float, high: float) -> float:
        return low if low == high else float(brentq(lambda difference: score(difference) - target, low, high))

    return Interval(where(Z, -1.0, estimate), where(-Z, estimate, 1.0))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Of the prompts whose outcome changed, as many should have gained as lost if the models behaved alike: a
    binomial test with one half, exact at any count.

    Args:
        gained: Prompts that count after but not before.
        lost: Prompts that count before but not after.
    """
    return float(binomtest(gained, gained + lost).pvalue) if gained or lost else 1.0


def resolvable(both_ways: int, n: int) -> float:
    """The smallest change of a rate that could be told from none at 95%, as a share of n prompts.

    By the exact McNemar test. If no prompt changes the other way, that takes 6.

    Args:
        both_ways: Prompts that change in the direction that fewer take.
        n: All prompts, at least 1.
    """
    more = 1
    while mcnemar(more + both_ways, both_ways) >= 1 - CONFIDENCE:
        more += 1
    return min(more / n, 1.0)
