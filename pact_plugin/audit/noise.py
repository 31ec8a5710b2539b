"""The noise floor: how many verdicts on a model change by themselves when it answers the same prompts again.

Greedy decoding is not deterministic: how prompts are batched and padded changes how sums are rounded, and a near tie
between two tokens then falls the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pact_plugin.audit.measures import Noise
from pact_plugin.audit.reading import Answers
from pact_plugin.audit.settings import Asking
from pact_plugin.data.generation import Done, Generation, answers

_QUARTERS = (3, 2, 1)
"""Batch sizes of the rounds, in quarters of the audit's: never larger, so that memory suffices."""


def again(model: Any, tokenizer: Any, said: Answers, asking: Asking, report: Done) -> tuple[list[str], ...]:
    """The texts that a model answers in each further round, in other batches and orders.

    Args:
        model: The model that gave the answers.
        tokenizer: Its tokenizer.
        said: What it said the first time.
        asking: How it was asked.
        report: Called with the number of prompts done, over all rounds.
    """
    rounds = []
    for number in range(asking.noise_floor):
        size = max(1, asking.batch_size * _QUARTERS[number % len(_QUARTERS)] // 4)
        order = np.random.default_rng(number).permutation(len(said.questions)).tolist()
        texts = [""] * len(order)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            found = answers(
                model,
                tokenizer,
                [said.questions[place] for place in places],
                Generation(asking.max_new_tokens, size),
            )
            for place, tokens in zip(places, found, strict=True):
                texts[place] = tokenizer.decode(tokens)
            report(number * len(order) + start + len(places))
        rounds.append(texts)
    return tuple(rounds)


def noise(kept: Sequence[int], first: Sequence[bool], rounds: Sequence[Sequence[bool]]) -> Noise:
    """How many verdicts flip.

    Args:
        kept: Where the prompts stand that count, at least one.
        first: Whether each prompt was refused in the audit.
        rounds: The same for each round more, at least one.
    """
    flips = [sum(one[place] != first[place] for place in kept) for one in rounds]
    return Noise(flips=flips, mean=sum(flips) / len(flips), maximum=max(flips), floor=max(flips) / len(kept))
