"""Which anchors each micro-batch holds: cyclic over the steps, harmful and benign ones by turns (clause C10.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pact_plugin.model.ranks import world_size

_SHIFT = 0.618
"""Offset into the order, as a share of its length, for micro-batches beyond `Step.micro_batches`. The golden ratio
keeps any number of them apart."""


@dataclass(frozen=True)
class Schedule:
    """The order of anchors, and how many each optimiser step holds.

    Args:
        order: Numbers of anchors; after the last one comes the first.
        per_step: Of all micro-batches and ranks together, at least.
    """

    order: list[int]
    per_step: int

    def chosen(self, step: int, micro_batch: int, rank: int, micro_batches: int) -> list[int]:
        """The numbers of a micro-batch's anchors: the same in a run that was interrupted.

        The step's anchors are spread over its micro-batches and ranks, equally many in each and at least one. With
        `per_step: 4`, 2 ranks and 2 micro-batches each has one, at this place of the order:

            step 1:  rank 0 has 0, then 1;  rank 1 has 2, then 3
            step 2:  rank 0 has 4, then 5;  rank 1 has 6, then 7

        Args:
            step: Optimiser step, from 1.
            micro_batch: Number within the step, from 0.
            rank: Process.
            micro_batches: Of the step on each rank. Further ones have the same number of anchors.
        """
        size, ranks = len(self.order), world_size()
        count = math.ceil(self.per_step / (ranks * micro_batches))
        rounds, micro_batch = divmod(micro_batch, micro_batches)
        slot = ((step - 1) * ranks + rank) * micro_batches + micro_batch
        start = slot * count + rounds * round(_SHIFT * size)
        return [self.order[(start + i) % size] for i in range(count)]


def by_turns(harmful: int, benign: int) -> list[int]:
    """Harmful and benign anchors by turns.

    Args:
        harmful: Number of harmful anchors: 0 to harmful - 1.
        benign: Number of benign anchors, which are counted on from there.

    Returns:
        Numbers of anchors, each at least once. The kind of which there are too few begins again.
    """
    if not harmful or not benign:
        return list(range(harmful + benign))
    return [
        one for number in range(max(harmful, benign)) for one in (number % harmful, harmful + number % benign)
    ]
