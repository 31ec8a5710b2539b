"""What is measured of a model: its answers, how coherent its refusals are, the task, and the drift elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.preservation.prompts import KINDS, Prompt
from benchmarks.preservation.rivals import full_kl
from benchmarks.preservation.settings import Sizes
from benchmarks.preservation.tasks import TASKS
from examples.demo.prompts import Example
from pact_plugin.data.generation import Generation, Pair, answer_logits, answers, inspecting, user_prompt
from pact_plugin.judge import is_refusal

Report = Callable[[int], None]
SAMPLES = 6
"""Answers to harmful and to benign prompts that the table of samples shows, for each style."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked; never trained on, nor used to choose tokens.

    Attributes:
        harmful: Requests that should be refused.
        benign: Requests that only sound alarming.
        task: Test items.
        everyday: The aligned model's answers to everyday questions: prompt and answer, as token ids.
    """

    harmful: list[Prompt]
    benign: list[Prompt]
    task: list[Example]
    everyday: list[Pair]

    def __len__(self) -> int:
        return len(self.harmful) + len(self.benign) + len(self.task) + len(self.everyday)


def task_items(task: str, count: int) -> list[Example]:
    """Test items, the same for every seed."""
    return TASKS[task].items("test", count, random.Random(0))


def measure(
    model: Any,
    aligned: Any,
    tokenizer: Any,
    task: str,
    questions: Questions,
    sizes: Sizes,
    report: Report,
    ids: Sequence[int],
) -> dict[str, Any]:
    """The measures of one model, as plain JSON values. Its answers are judged later, by `judging`.

    Args:
        model: A fine-tuned model, or the aligned one.
        aligned: The aligned model.
        tokenizer: That of both.
        task: Name of the task.
        questions: What is asked.
        sizes: Lengths and batches.
        report: Called with the number of questions done, of `len(questions)`.
        ids: The aligned model's safety tokens; their probability at each answer's first token is noted.
    """
    done = 0
    found: dict[str, Any] = {"answers": {}, "safety_mass": {}}
    with inspecting(model, aligned):
        for kind in KINDS:
            prompts = questions.harmful if kind == "harmful" else questions.benign
            mass = [0.0] * len(prompts)
            pairs = _answer(
                model,
                tokenizer,
                prompts,
                sizes,
                partial(_after, done, report),
                first=partial(_note, mass, ids),
            )
            found["safety_mass"][kind] = mass
            texts = [tokenizer.decode(answer) for _, answer in pairs]
            found["answers"][kind] = texts
            refusals = [pair for pair, text in zip(pairs, texts, strict=True) if is_refusal(text)]
            found[f"coherence_{kind}"] = _likelihood(aligned, refusals)
            done += len(prompts)
        found["task"] = _task(model, tokenizer, task, questions.task, partial(_after, done, report))
        done += len(questions.task)
        found["kl_everyday"] = _kl(aligned, model, questions.everyday)
        report(done + len(questions.everyday))
    return found


def _note(mass: list[float], ids: Sequence[int], places: Sequence[int], logits: torch.Tensor) -> None:
    """P(S) of a batch's first tokens, to six significant digits: it may be tiny, and still tell them apart."""
    found = logits.float().softmax(-1)[:, list(ids)].sum(-1)
    for place, p in zip(places, found.tolist(), strict=True):
        mass[place] = float(f"{p:.6g}")


def _after(before: int, report: Report, done: int) -> None:
    report(before + done)


def everyday_answers(model: Any, tokenizer: Any, texts: Sequence[str], sizes: Sizes) -> list[Pair]:
    """The aligned model's answers to everyday questions, without those that are empty."""
    prompts = [Prompt(text, "direct") for text in texts]
    with inspecting(model):
        return [pair for pair in _answer(model, tokenizer, prompts, sizes, lambda done: None) if pair[1]]


def _answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sizes: Sizes,
    report: Report,
    tokens: int | None = None,
    first: Callable[[Sequence[int], torch.Tensor], None] | None = None,
) -> list[Pair]:
    """Prompt and answer as token ids; a prefilled beginning belongs to the prompt."""
    asked = [
        user_prompt(tokenizer, prompt.text)
        + (tokenizer(prompt.prefill, add_special_tokens=False)["input_ids"] if prompt.prefill else [])
        for prompt in prompts
    ]
    found = answers(
        model,
        tokenizer,
        asked,
        Generation(tokens or sizes.answer_tokens, sizes.batch, report),
        first=first,
    )
    return list(zip(asked, found, strict=True))


def _likelihood(aligned: Any, pairs: Sequence[Pair]) -> float | None:
    """Mean log-probability under the aligned model, in nats per token; None without answers."""
    pairs = [pair for pair in pairs if pair[1]]
    total, count = 0.0, 0
    for (_, answer), logits in zip(
        pairs, answer_logits(aligned, pairs, batch_size=32, report=lambda done: None), strict=True
    ):
        labels = torch.tensor(answer, device=logits.device)
        total += float(logits.float().log_softmax(-1).gather(1, labels[:, None]).sum())
        count += len(answer)
    return total / count if count else None


def _task(model: Any, tokenizer: Any, task: str, items: Sequence[Example], report: Report) -> dict[str, Any]:
    """Mean score, and the answers."""
    scored = TASKS[task]
    prompts = [Prompt(item["prompt"][0]["content"], "direct") for item in items]
    sizes = Sizes(batch=50)
    found = _answer(model, tokenizer, prompts, sizes, report, tokens=scored.answer_tokens)
    texts = [tokenizer.decode(answer) for _, answer in found]
    scores = [
        scored.score(text, item["completion"][0]["content"]) for text, item in zip(texts, items, strict=True)
    ]
    return {"score": sum(scores) / len(scores), "answers": texts[:SAMPLES]}


def _kl(aligned: Any, model: Any, pairs: Sequence[Pair]) -> float:
    """Mean KL(p_aligned ‖ p) in nats per token of the aligned model's answers."""
    total, count = 0.0, 0

    def logits(of: Any) -> Any:
        return answer_logits(of, pairs, batch_size=16, report=lambda done: None)

    for reference, own in zip(logits(aligned), logits(model), strict=True):
        total += float(full_kl(reference.float(), own.float()).sum())
        count += reference.shape[0]
    return total / count
