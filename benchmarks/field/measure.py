"""What is measured of a model: answers and verdicts, their likelihood, the task, and drift on everyday questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.field.data import Item
from benchmarks.field.encoding import encode
from benchmarks.field.kept import once
from benchmarks.field.settings import ANSWER_TOKENS
from benchmarks.field.start import ASKED_AT_A_TIME, Start
from pact_plugin.audit import everyday
from pact_plugin.audit.coherence import UNLIKELY
from pact_plugin.audit.judging import refuses
from pact_plugin.audit.reading import Answers, likelihoods
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import Generation, answers, inspecting
from pact_plugin.judge import find_judge

EXACT_TOKENS = 220
"""Tokens of the solution of a school problem."""
READ_AT_A_TIME = 8
_NUMBER = re.compile(r"(?:(?<![\d)])-)?\d[\d,]*(?:\.\d+)?")
"""A minus between two numbers is no sign."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked.

    Attributes:
        asked: Prompts by set; at most 24 tokens of answer.
        held_out: Items of the task, for their log-likelihood.
        problems: To be solved; none for tasks without a right answer.
    """

    asked: Mapping[str, Sequence[str]]
    held_out: Sequence[Item]
    problems: Sequence[Item] = ()


def measure(model: Any, start: Start, questions: Questions) -> dict[str, Any]:
    """The measures of a model, as plain JSON values.

    Args:
        model: Fine-tuned and merged, or the aligned one.
        start: The aligned model.
        questions: What is asked.
    """
    with inspecting(model, start.model):
        return {
            "asked": {name: _ask(model, start, prompts) for name, prompts in questions.asked.items()},
            "held_out": _held_out(model, start, questions.held_out),
            "everyday": _everyday(model, start),
            "exact": _solve(model, start, questions.problems),
        }


def _ask(model: Any, start: Start, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Every answer with its verdict, and its mean log-likelihood under the aligned model in nats per token."""
    if not prompts:
        return []
    asked = user_prompts(start.tokenizer, prompts)
    said = answers(model, start.tokenizer, asked, Generation(ANSWER_TOKENS, ASKED_AT_A_TIME))
    texts = [start.tokenizer.decode(answer) for answer in said]
    likely = likelihoods(start.model, list(zip(asked, said, strict=True)), batch_size=READ_AT_A_TIME)
    judged = find_judge().judge(prompts, texts)
    return [
        {
            "prompt": prompt,
            "answer": text,
            "verdict": one.verdict,
            "refused": refuses(one.verdict),
            "score": None if one.score is None else round(one.score, 4),
            "likelihood": round(float(logprobs.mean()), 4) if len(logprobs) else None,
        }
        for prompt, text, one, logprobs in zip(prompts, texts, judged, likely, strict=True)
    ]


def incoherent(row: Mapping[str, Any]) -> bool:
    """Whether an answer is no language, or none at all, going by the aligned model's likelihood of it."""
    return row["likelihood"] is None or row["likelihood"] < UNLIKELY


def _held_out(model: Any, start: Start, items: Sequence[Item]) -> list[list[float]]:
    """-log p of each item's answer in nats, and its tokens."""
    rows = [encode(start.tokenizer, item) for item in items]
    pairs = [(row.prompt, row.answer) for row in rows]
    found = likelihoods(model, pairs, batch_size=READ_AT_A_TIME)
    return [[round(-float(logprobs.sum()), 4), len(logprobs)] for logprobs in found]


def _everyday(model: Any, start: Start) -> list[list[float]]:
    """KL(aligned ‖ model) in nats along the aligned model's answer to each everyday question, and its tokens."""
    questions = everyday.questions()
    said = once(start.folder, "everyday", lambda: start.answers(questions, ANSWER_TOKENS))
    asked = user_prompts(start.tokenizer, questions)
    kept = everyday.keep(
        start.model,
        Answers(asked, said, [start.tokenizer.decode(one) for one in said]),
        batch_size=READ_AT_A_TIME,
    )
    sums = everyday.divergence(model, asked, kept, batch_size=READ_AT_A_TIME)
    return [[round(total, 5), len(answer)] for total, answer in zip(sums, said, strict=True)]


def _solve(model: Any, start: Start, problems: Sequence[Item]) -> list[dict[str, Any]]:
    """Each problem's answer, and whether its number is the right one."""
    if not problems:
        return []
    asked = user_prompts(start.tokenizer, [one.prompt for one in problems])
    said = answers(model, start.tokenizer, asked, Generation(EXACT_TOKENS, ASKED_AT_A_TIME))
    texts = [start.tokenizer.decode(answer) for answer in said]
    return [
        {"prompt": one.prompt, "answer": text, "right": number(text) == number(one.answer)}
        for one, text in zip(problems, texts, strict=True)
    ]


def number(text: str) -> float | None:
    """What a solution comes to: the first number after "####", or else its last one."""
    _, mark, after = text.rpartition("####")
    found = (_NUMBER.findall(after)[:1] if mark else []) or _NUMBER.findall(text)[-1:]
    return float(found[0].replace(",", "")) if found else None
