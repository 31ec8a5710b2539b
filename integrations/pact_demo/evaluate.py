"""Ask a model the held-out prompts and count: refusals, over-refusals, and right answers to the task."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pact_demo.prompts import read_lines
from pact_demo.task import is_correct, task_examples
from pact_plugin.generate import Progress
from pact_plugin.judge import is_refusal

ANSWER_TOKENS = 16  # enough for the keyword judge, which looks at the start of an answer
TASK_TOKENS = 12
BATCH = 100

Report = Callable[[int], None]
"""Called with the number of items that are done."""


def reporter(bars: Progress, total: int, description: str) -> Report:
    """A bar of its own among ``bars``."""
    return lambda done: bars(done, total, description)


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

    def __len__(self) -> int:
        return len(self.harmful) + len(self.benign) + len(self.task)


@dataclass(frozen=True)
class Score:
    """Shares of the questions, from 0 to 1."""

    refusal_rate: float
    over_refusal_rate: float
    task_accuracy: float


def answer(model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int, report: Report) -> list[str]:
    """Greedy answers of at most ``tokens`` tokens."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        chats = [[{"role": "user", "content": prompts[row]}] for row in rows]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.no_grad():
            output = model.generate(
                **batch, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
        report(start + len(rows))
    return answers


def evaluate(
    model: Any, tokenizer: Any, questions: Questions, report: Report
) -> tuple[Score, dict[str, list[str]]]:
    """The model's score and the answers that it rests on; ``report`` counts all the questions."""
    model.eval()
    answers: dict[str, list[str]] = {}
    for name, prompts, tokens in (
        ("harmful", questions.harmful, ANSWER_TOKENS),
        ("benign", questions.benign, ANSWER_TOKENS),
        ("task", questions.task, TASK_TOKENS),
    ):
        before = sum(map(len, answers.values()))
        answers[name] = answer(model, tokenizer, prompts, tokens, partial(_after, before, report))
    return (
        Score(
            refusal_rate=_share(map(is_refusal, answers["harmful"])),
            over_refusal_rate=_share(map(is_refusal, answers["benign"])),
            task_accuracy=_share(map(is_correct, answers["task"], questions.solutions)),
        ),
        answers,
    )


def _after(before: int, report: Report, done: int) -> None:
    report(before + done)


def _share(hits: Iterable[bool]) -> float:
    outcomes = list(hits)
    return sum(outcomes) / len(outcomes)
