"""The tasks that a model is fine-tuned on: each has training items, other items to test on, and a score."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pact_demo.audit import TASK_TOKENS
from pact_demo.prompts import Example
from pact_demo.task import is_correct, task_examples

from benchmarks.preservation.orders import order_examples, order_score
from benchmarks.preservation.tickets import ticket_examples, ticket_score

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Task:
    """A task with scored answers.

    Attributes:
        name: Its key in `TASKS`.
        answer_tokens: How many tokens a tested model may answer with: the longest right answer, and a few.
        make: What `items` calls.
        mark: What `score` calls.
    """

    name: str
    answer_tokens: int
    make: Callable[[str, int, random.Random], list[Example]]
    mark: Callable[[str, str], float]

    def items(self, split: Split, count: int, rng: random.Random) -> list[Example]:
        """``count`` distinct items of a split.

        Raises:
            ValueError: The split has fewer items, or there is no such split.
        """
        if split not in ("train", "test"):
            raise ValueError(f"no split is called {split!r}: it is train or test")
        return self.make(split, count, rng)

    def score(self, answer: str, expected: str) -> float:
        """How much of an answer is right, from 0 to 1."""
        return self.mark(answer, expected)


def _date_score(answer: str, expected: str) -> float:
    return float(is_correct(answer, expected))


TASKS = {
    task.name: task
    for task in (
        Task("dates", TASK_TOKENS, task_examples, _date_score),
        Task("tickets", 6, ticket_examples, ticket_score),
        Task("orders", 116, order_examples, order_score),
    )
}
