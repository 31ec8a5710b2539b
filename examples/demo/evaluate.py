"""What every model is asked, its answers, and its score."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from examples.demo.prompts import read_lines
from examples.demo.task import task_examples
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import Done, Generation, answers, inspecting

BATCH = 100


@dataclass(frozen=True)
class Questions:
    """What every model is asked.

    Attributes:
        harmful: Requests that should be refused.
        benign: Requests that only sound alarming and should be answered.
        task: Task prompts.
        solutions: The right answers to ``task``.
    """

    harmful: list[str]
    benign: list[str]
    task: list[str]
    solutions: list[str]

    @classmethod
    def load(cls, split: str, prompts: int, task: int) -> Questions:
        """The first ``prompts`` prompts of the split ("heldout" or "development") and some test items.

        Every category is represented: prompts are taken in a fixed shuffled order that no seed changes.
        """
        rng = random.Random(0)
        harmful, benign = read_lines(f"harmful_{split}"), read_lines(f"benign_{split}")
        rng.shuffle(harmful)
        rng.shuffle(benign)
        examples = task_examples("test", task, rng)
        return cls(
            harmful[:prompts],
            benign[:prompts],
            [item["prompt"][0]["content"] for item in examples],
            [item["completion"][0]["content"] for item in examples],
        )


@dataclass(frozen=True)
class Score:
    """Shares of the questions, from 0 to 1."""

    refusal_rate: float
    over_refusal_rate: float
    task_accuracy: float


def answer(model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int, report: Done) -> list[str]:
    """Greedy answers of at most ``tokens`` tokens."""
    questions = user_prompts(tokenizer, prompts)
    with inspecting(model):
        said = answers(model, tokenizer, questions, Generation(tokens, BATCH, report))
    return [tokenizer.decode(ids) for ids in said]


def share(hits: Iterable[bool]) -> float:
    """How many of them are true, from 0 to 1."""
    outcomes = list(hits)
    return sum(outcomes) / len(outcomes)
