"""The tasks that a model is fine-tuned on: each has training items, other items to test on, and a score."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.preservation.orders import ORDER_SHAPE, order_examples, order_score
from benchmarks.preservation.requests import request_examples, request_score
from benchmarks.preservation.tickets import TICKET_SHAPE, ticket_examples, ticket_score
from examples.demo.audit import TASK_TOKENS
from examples.demo.prompts import Example
from examples.demo.task import is_correct, task_examples

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Task:
    """A task with scored answers.

    Attributes:
        name: Its key in `TASKS`.
        answer_tokens: How many tokens a tested model may answer with: the longest right answer, and a few.
        make: What `items` calls.
        mark: What `score` calls.
        shape: What its answers look like, right or wrong; None where they are those of a model that complies.
    """

    name: str
    answer_tokens: int
    make: Callable[[str, int, random.Random], list[Example]]
    mark: Callable[[str, str], float]
    shape: re.Pattern[str] | None

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

    def looks_like(self, text: str) -> bool:
        """Whether a text is nothing but such an answer, possibly cut off."""
        return self.shape is not None and self.shape.fullmatch(text) is not None


DATE_SHAPE = re.compile(r"\W*\d{4}-\d{2}(?:-\d{2})?\W*")


def _date_score(answer: str, expected: str) -> float:
    return float(is_correct(answer, expected))


TASKS = {
    task.name: task
    for task in (
        Task("dates", TASK_TOKENS, task_examples, _date_score, DATE_SHAPE),
        Task("tickets", 6, ticket_examples, ticket_score, TICKET_SHAPE),
        Task("orders", 116, order_examples, order_score, ORDER_SHAPE),
        Task("requests", 32, request_examples, request_score, None),
    )
}
