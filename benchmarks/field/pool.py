"""The pool of prompts, harmful and benign, with the aligned model's own answers: what methods replay.

Every method that has a pool takes equally many of its prompts in each step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pact_plugin.data.generation import Pair
from pact_plugin.data.prompts import KINDS, for_pool
from pact_plugin.reference.pool import Pool


@dataclass(frozen=True)
class Replayed:
    """Prompts with answers, as token ids.

    Attributes:
        harmful: Those to harmful prompts.
        benign: Those to benign ones.
    """

    harmful: Sequence[Pair]
    benign: Sequence[Pair]

    def harmful_of_step(self, number: int, count: int, seed: int) -> list[Pair]:
        """`count` harmful ones for step `number`, in a shuffled order."""
        return _turn(self.harmful, number, count, seed)

    def of_step(self, number: int, count: int, seed: int) -> list[Pair]:
        """`count` of them for step `number`, half of them harmful, in a shuffled order."""
        harmful = _turn(self.harmful, number, (count + 1) // 2, seed)
        return harmful + _turn(self.benign, number, count // 2, seed)


def pool_prompts() -> tuple[str, ...]:
    """All prompts of the pool, none of which may be asked after training."""
    return tuple(one.prompt for one in for_pool().prompts)


def replayed(asked: Pool, tokens: int) -> Replayed:
    """The harmful prompts that the aligned model refuses, and the benign ones that it helps with: pact-plugin's own.

    So every method is held at the same prompts, and none at answers that are not as they should be.

    Args:
        asked: pact-plugin's pool, answered.
        tokens: First tokens of each answer that are kept.
    """
    harmful, benign = (
        [(prompt, answer[:tokens]) for prompt, answer in asked.pairs(kind).values()] for kind in KINDS
    )
    return Replayed(harmful, benign)


def _turn(pairs: Sequence[Pair], number: int, count: int, seed: int) -> list[Pair]:
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    return [pairs[order[(number * count + i) % len(order)]] for i in range(count)]
