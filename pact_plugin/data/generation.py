"""Answers and their logits, from any causal language model with transformers' call signatures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.utils.rnn import pad_sequence

from pact_plugin.model.wrappers import contiguous_input, evaluation_mode, text_config, without_router_loss

Progress = Callable[[int, int, str], None]
"""Called with (done, total, description) after each batch."""

Done = Callable[[int], None]
"""Called with how many are done, such as prompts."""

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


@contextmanager
def inspecting(*models: Any) -> Iterator[None]:
    """Models in eval mode without gradients; afterwards their modes and the random state are as they were."""
    devices = sorted({device.index for model in models if (device := device_of(model)).type == "cuda"})
    with evaluation_mode(*models), torch.no_grad(), torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """The host's random state is the same afterwards as before: data sets may draw numbers when a row is read."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def device_of(model: Any) -> torch.device:
    """Where the model's inputs belong."""
    return next(model.parameters()).device


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of special tokens: end of turn, padding and the like, also those that have no name in the tokenizer."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {number for number, one in added.items() if one.special}


def silent(done: int) -> None:
    """Report nothing."""


def reporting(progress: Progress | None, total: int, description: str) -> Done:
    """Reports to `progress`, if there is one, under one description."""
    return silent if progress is None else lambda done: progress(done, total, description)


@dataclass(frozen=True)
class Generation:
    """How a model is asked.

    Args:
        max_new_tokens: Where answers are cut off, in tokens.
        batch_size: Prompts at a time, padded on the left.
        report: Called with the number of prompts done.
    """

    max_new_tokens: int
    batch_size: int
    report: Done = silent


def longest_first(rows: Sequence[Sized], size: int) -> Iterator[list[int]]:
    """The numbers of the rows of each batch. The longest come first: too little memory shows at once."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    how: Generation,
) -> list[list[int]]:
    """Greedy answers, up to (not including) their first special token.

    Args:
        model: Has `generate`.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        how: Length of answers and number of prompts at a time.

    Returns:
        Token ids of each answer, in the order of `prompts`; empty if it has none.
    """
    pad = _padding(tokenizer, model)
    stop = special_ids(tokenizer)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    replies: list[list[int]] = [[] for _ in prompts]
    done = 0
    for places in longest_first(prompts, how.batch_size):
        batch = [prompts[place] for place in places]
        ids, mask = _padded(batch, pad, "left", device_of(model))
        with contiguous_input(head), without_router_loss(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=how.max_new_tokens,
                pad_token_id=pad,
                use_cache=True,  # gradient checkpointing leaves false in a checkpoint: each token would read all anew
                **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0},
                **{"temperature": None, "top_p": None, "top_k": None, "num_return_sequences": 1},
                # Each needs what is not passed here.
                **{"stop_strings": None, "prompt_lookup_num_tokens": None},
            )
        for place, row in zip(places, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in stop), len(row))
            replies[place] = row[:end]
        done += len(batch)
        how.report(done)
    return replies


def answer_logits(
    model: Any,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    report: Done,
) -> Iterator[Float[torch.Tensor, "R V"]]:
    """Teacher-forced logits of each answer: row r predicts its token r. One batch of logits is held at a
    time.

    Args:
        model: Returns `logits`.
        pairs: Each prompt with its answer of R >= 1 tokens.
        batch_size: Pairs at a time, padded on the right, where a causal model does not look.
        report: Called with the number of pairs done.
    """
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        ids, mask = _padded([prompt + answer for prompt, answer in batch], 0, "right", device_of(model))
        logits = model(input_ids=ids, attention_mask=mask).logits
        for row, (prompt, answer) in zip(logits, batch, strict=True):
            yield row[len(prompt) - 1 : len(prompt) + len(answer) - 1]
        report(start + len(batch))


def _padded(
    rows: Sequence[list[int]], padding: int, side: Literal["left", "right"], device: torch.device
) -> tuple[Int[torch.Tensor, "B T"], Int[torch.Tensor, "B T"]]:
    """Rows of ids as one tensor, and their attention mask."""
    ids = pad_sequence([torch.tensor(row) for row in rows], True, padding, side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True, 0, side)
    return ids.to(device), mask.to(device)


def _padding(tokenizer: Any, model: Any) -> int:
    """Padding is masked, so any id that the model can embed will do. The tokenizer's own may have been added later."""
    known = getattr(text_config(model), "vocab_size", math.inf)
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None and token < known:
            return int(token)
    return 0
