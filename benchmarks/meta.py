"""Models without data: tensors on torch's `meta` device have a shape and no numbers, and cost nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.settings import Settings
from benchmarks.shapes import build_model
from pact_plugin.model.head import LanguageHead


def build(settings: Settings) -> Any:
    """The model of a shape."""
    return build_model(settings.sizes, dtype=getattr(torch, settings.dtype), device="meta")


def head_flops(
    positions: int, hidden_size: int, vocab_size: int, *, trained: bool, recompute: bool = False
) -> int:
    """Of projecting positions on the vocabulary, forward and backward.

    2·N·d·V for the logits, as much for the gradient of the hidden states, for that of a head in training, and for the
    logits once more where they are recomputed.
    """
    return 2 * positions * hidden_size * vocab_size * (2 + trained + recompute)


def inputs(rows: int, length: int, head: LanguageHead) -> dict[str, Any]:
    """For a decoder; the mask is given whole, as it cannot be looked at."""
    dtype = next(head.decoder.parameters()).dtype
    return {
        "input_ids": torch.zeros(rows, length, dtype=torch.long, device="meta"),
        "attention_mask": torch.zeros(1, 1, length, length, dtype=dtype, device="meta"),
        "use_cache": False,
    }


def decoder_pass(head: LanguageHead, rows: int, length: int) -> tuple[int, int]:
    """FLOPs forward and backward."""
    with FlopCounterMode(display=False) as forward:
        hidden = head.decoder(**inputs(rows, length, head)).last_hidden_state
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()
