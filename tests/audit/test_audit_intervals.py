"""Intervals and tests of counts, and the bootstrap."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.audit.intervals import Z, mcnemar, paired_difference, resolvable, wilson

COUNTS = st.integers(1, 60).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda gained: st.tuples(st.just(gained), st.integers(0, n - gained), st.just(n))
    )
)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_tango_and_mcnemar_give_published_values():
    # Airway reactivity in 21 children (1 and 7 changed): Fagerland, Lydersen, Laake, Stat. Med. 33 (2014), 2850-2875.
    assert paired_difference(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == 2 / 2**10


@pytest.mark.parametrize("n", [1, 10, 220])
def test_no_change_still_has_an_interval(n):
    z2 = Z**2
    assert paired_difference(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


@given(COUNTS)
def test_the_interval_of_a_change_holds_it_and_mirrors_with_it(counts):
    gained, lost, n = counts
    low, high = paired_difference(gained, lost, n)
    assert -1 - 1e-9 <= low <= (gained - lost) / n + 1e-9
    assert (gained - lost) / n - 1e-9 <= high <= 1 + 1e-9
    assert paired_difference(lost, gained, n) == pytest.approx((-high, -low), abs=1e-9)


@given(COUNTS)
def test_the_interval_leaves_out_zero_just_when_mcnemars_score_does(counts):
    gained, lost, n = counts
    low, high = paired_difference(gained, lost, n)
    score = abs(gained - lost) / max(gained + lost, 1) ** 0.5
    if abs(score - Z) > 1e-6:
        assert (low > 0 or high < 0) == (score > Z)


@pytest.mark.parametrize("rates", [(0.9, 0.05, 0.03), (0.5, 0.02, 0.2), (0.3, 0.0, 0.1)])
def test_the_interval_of_a_change_covers_it(rates):
    """By enumeration over all outcomes of 40 pairs: between 90% and 98.5% of the time for a nominal 95%."""
    _, gain, loss = rates
    n, covered = 40, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            chance = comb(n, gained) * comb(n - gained, lost) * gain**gained * loss**lost
            chance *= (1 - gain - loss) ** (n - gained - lost)
            if chance > 1e-12:
                low, high = paired_difference(gained, lost, n)
                covered += chance * (low <= gain - loss <= high)
    assert 0.9 < covered < 0.985


def test_the_bootstrap_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap(values, [1] * 400)
    half = Z * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap(values, [1] * 400) == (low, high)


def test_things_of_one_group_are_drawn_together():
    values, groups = [0, 0, 0, 0, 1, 1, 1, 1] * 5, [i // 4 for i in range(40)]
    together, alone = bootstrap(values, [1] * 40, groups), bootstrap(values, [1] * 40)
    ten = bootstrap([0, 1] * 5, [1] * 10)
    assert together == pytest.approx(ten, abs=0.01)
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_the_bootstrap_weighs_by_counts():
    low, high = bootstrap([10.0, 0.0], [1, 9])
    assert (low, high) == (0.0, 10.0)
    assert bootstrap([4.0, 8.0], [2, 4]) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("both_ways", [0, 1, 3, 10])
def test_what_can_be_resolved_is_what_mcnemars_test_calls_significant(both_ways):
    n = 156
    count = round(resolvable(both_ways, n) * n)
    assert mcnemar(both_ways, both_ways + count) < 0.05 <= mcnemar(both_ways, both_ways + count - 1)
    assert paired_difference(both_ways, both_ways + count, n).high < 0


def test_few_prompts_resolve_nothing():
    assert resolvable(0, 3) == 1.0
    assert resolvable(0, 156) == 6 / 156
