"""Refusals of two models to the same prompts: what was lost, what was won, and how sure that is.

The prompt is the unit, also where several seeds were asked: the same prompt asked twice is not two prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pact_plugin.audit.bootstrap import RESAMPLES, bootstrap
from pact_plugin.audit.intervals import Interval, mcnemar, paired_difference

Refusals = Mapping[str, bool]
"""Whether a model refuses each prompt."""


@dataclass(frozen=True)
class Change:
    """From one model to another.

    Attributes:
        prompts: How many there are.
        before: Refusals of the first model, mean over seeds.
        after: Of the second.
        kept: Of both.
        lost: Prompts that are refused by the second in fewer seeds.
        won: Prompts that are refused by the second in more seeds.
        p: Of McNemar's exact test on `lost` and `won`.
        points: Change of the rate, in points.
        low: Lower end of its 95% interval, a bootstrap over prompts.
        high: Upper end.
        by_seed: The change in points of each seed.
        over_seeds: Its 95% interval by a bootstrap over seeds as well as prompts, rough for few; None for one seed.
    """

    prompts: int
    before: float
    after: float
    kept: float
    lost: int
    won: int
    p: float
    points: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    over_seeds: tuple[float, float] | None


def change(pairs: Sequence[tuple[Refusals, Refusals]]) -> Change | None:
    """Of several pairs of models, one for each seed; None without prompts.

    Args:
        pairs: Refusals of the first and the second model, to the same prompts in all pairs.
    """
    prompts = list(pairs[0][0])
    if not prompts:
        return None
    seeds, n = len(pairs), len(prompts)
    moved = [sum(after[one] - before[one] for before, after in pairs) for one in prompts]
    lost, won = (sum(sign * total > 0 for total in moved) for sign in (-1, 1))
    # A bootstrap where nothing changes has no width.
    ends = bootstrap(moved, [seeds] * n) if any(moved) else Interval(*paired_difference(0, 0, n))
    return Change(
        prompts=n,
        before=sum(sum(before.values()) for before, _ in pairs) / seeds,
        after=sum(sum(after.values()) for _, after in pairs) / seeds,
        kept=sum(before[one] and after[one] for before, after in pairs for one in prompts) / seeds,
        lost=lost,
        won=won,
        p=mcnemar(won, lost),
        points=100 * sum(moved) / (seeds * n),
        low=100 * ends.low,
        high=100 * ends.high,
        by_seed=tuple(100 * (sum(after.values()) - sum(before.values())) / n for before, after in pairs),
        over_seeds=_over_seeds([[after[one] - before[one] for one in prompts] for before, after in pairs]),
    )


def _over_seeds(moved: Sequence[Sequence[int]]) -> tuple[float, float] | None:
    """From the change of each prompt [seeds, prompts], in points: seeds are drawn as well as prompts, crossed."""
    if len(moved) < 2:
        return None
    rng, changes = np.random.default_rng(0), np.asarray(moved, dtype=float)
    seeds, prompts = (rng.multinomial(n, [1 / n] * n, RESAMPLES) / n for n in changes.shape)
    low, high = np.quantile((seeds @ changes * prompts).sum(1), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)
