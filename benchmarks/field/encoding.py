"""Items as token ids, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.field.data import Item
from benchmarks.field.settings import EASED_TOKENS
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import Pair

LONGEST = 160
"""Tokens of an answer that is trained on, at most."""
Batch = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels` [B, T], padded on the right."""


@dataclass(frozen=True)
class Row:
    """An item as token ids; the cross-entropy of the first tokens of its answer weighs 1 - `eased`."""

    prompt: list[int]
    answer: list[int]
    eased: float = 0.0


def encode(tokenizer: Any, item: Item, eased: float = 0.0) -> Row:
    """The prompt in the model's chat format, and the answer to its end."""
    answer = tokenizer(item.answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return Row(user_prompts(tokenizer, [item.prompt])[0], list(answer)[:LONGEST], eased)


def padded(pairs: Sequence[Pair], device: torch.device | str = "cpu") -> Batch:
    """Prompts with answers as one batch; an answer may be empty. Padding is masked, so any id does."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(answer, dtype=torch.long)
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }


def batch_of(rows: Sequence[Row]) -> tuple[Batch, Tensor]:
    """A batch, and the weight of the cross-entropy at each of its labels, row by row."""
    batch = padded([(row.prompt, row.answer) for row in rows])
    weights = [torch.ones(len(row.answer)) for row in rows]
    for row, weight in zip(rows, weights, strict=True):
        weight[:EASED_TOKENS] = 1 - row.eased
    return batch, torch.cat(weights)
