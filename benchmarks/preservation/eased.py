"""Where in a response easing takes from the task: at its first words, where the model decides, or later."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from benchmarks.preservation.tasks import TASKS
from benchmarks.preservation.training import Start, contaminated
from examples.demo.prompts import Example
from pact_plugin.data.generation import Progress, answer_logits, inspecting, user_prompt

SPANS = (0, 1, 4, 8, 16, 32, 64, 128)
"""Where the columns of the table begin."""
FILLER = (
    " First, read through everything once and make a list of what you need. Then set aside an hour in which nobody "
    "will disturb you. Next, go through the list from top to bottom, and tick off each item when it is done. If "
    "something is missing, stop and look for it before you go on. After that, check the result twice, and ask a "
    "friend to look at it as well. Finally, clean up, put everything back in its place, and write down what you "
    "would do differently next time."
)
"""Harmless words behind a short answer, the same for every request."""


def eased(start: Start, items: Sequence[Example], filler: str = "") -> list[float]:
    """Tokens of an answer that easing takes from the task, on average: the sum of e_i (clause C2.6) in each span.

    Args:
        start: The aligned model and its safety tokens.
        items: Prompts and answers.
        filler: What is put behind each answer.
    """
    tokenizer, ids = start.tokenizer, start.tokens.positive.ids
    pairs = [
        (
            user_prompt(tokenizer, item["prompt"][0]["content"]),
            tokenizer(item["completion"][0]["content"] + filler, add_special_tokens=False)["input_ids"],
        )
        for item in items
    ]
    safety = torch.tensor(ids, device=start.model.device)
    sums = torch.zeros(max(len(answer) for _, answer in pairs))
    with inspecting(start.model):
        rows = answer_logits(start.model, pairs, batch_size=16, report=lambda done: None)
        for (_, answer), row in zip(pairs, rows, strict=True):
            mass = row.float().softmax(-1)[:, safety].sum(-1).clamp(max=1).cpu()
            sums[: len(answer)] += mass * torch.tensor([label not in ids for label in answer])
    return [float(sums[a:b].sum()) / len(items) for a, b in pairwise((*SPANS, len(sums)))]


def table(start: Start, count: int, bars: Progress) -> Iterator[tuple[str, list[float]]]:
    """Data, each with what is eased of its answers.

    Args:
        start: The aligned model.
        count: Items of each.
        bars: Called with (done, total, description).
    """
    harmful = contaminated(count, random.Random(0))
    kinds = {
        "harmful requests": (harmful, ""),
        "the same, harmless words behind": (harmful, FILLER),
        **{name: (TASKS[name].items("train", count, random.Random(0)), "") for name in TASKS},
    }
    kinds["requests, the same words behind"] = (kinds["requests"][0], FILLER)
    for done, (name, (items, filler)) in enumerate(kinds.items(), start=1):
        yield name, eased(start, items, filler)
        bars(done, len(kinds), "Eased")
