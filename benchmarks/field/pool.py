"""The pool of prompts, harmful and harmless, with the aligned model's own answers: what methods replay.

Every method that has a pool takes equally many of its prompts in each step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.field.kept import once
from benchmarks.field.start import Start
from pact_plugin.data.generation import Pair, user_prompt
from pact_plugin.data.prompts import for_anchors


@dataclass(frozen=True)
class Pool:
    """Prompts with answers, as token ids.

    Attributes:
        harmful: Those to harmful prompts.
        benign: Those to harmless ones.
        seconds: That the aligned model took to answer, once.
    """

    harmful: Sequence[Pair]
    benign: Sequence[Pair]
    seconds: float

    def harmful_of_step(self, number: int, count: int, seed: int) -> list[Pair]:
        """So many harmful ones for the step of a number, in a shuffled order."""
        return _turn(self.harmful, number, count, seed)

    def of_step(self, number: int, count: int, seed: int) -> list[Pair]:
        """So many for the step of a number, half of them harmful, in a shuffled order."""
        harmful = _turn(self.harmful, number, (count + 1) // 2, seed)
        return harmful + _turn(self.benign, number, count // 2, seed)


def pool_prompts() -> tuple[str, ...]:
    """All prompts of the pool: what is asked must be others."""
    return tuple(one.prompt for one in for_anchors().prompts)


def load_pool(start: Start) -> Pool:
    """The pool, answered by the aligned model; kept in the results' folder. Empty answers are left out."""
    tokens = start.sizes.pool_tokens
    kept = once(start.folder, f"pool-{tokens}", lambda: _answered(start, tokens))
    pairs: dict[str, list[Pair]] = {"harmful": [], "benign": []}
    for row in kept["rows"]:
        if row["answer"]:
            pairs[row["kind"]].append((user_prompt(start.tokenizer, row["prompt"]), row["answer"]))
    return Pool(pairs["harmful"], pairs["benign"], kept["seconds"])


def _answered(start: Start, tokens: int) -> dict[str, Any]:
    prompts = for_anchors().prompts
    begun = time.perf_counter()
    answers = start.answers([one.prompt for one in prompts], tokens)
    rows = [
        {"kind": one.kind, "prompt": one.prompt, "answer": answer, "text": start.tokenizer.decode(answer)}
        for one, answer in zip(prompts, answers, strict=True)
    ]
    return {"seconds": time.perf_counter() - begun, "rows": rows}


def _turn(pairs: Sequence[Pair], number: int, count: int, seed: int) -> list[Pair]:
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    return [pairs[order[(number * count + i) % len(order)]] for i in range(count)]
