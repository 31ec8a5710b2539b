"""Memory of a step whose anchors share the batch's backward pass, and of one whose anchors have one of their own.

Exact, without a GPU: tensors that have a shape and no data. Weights and optimiser are not counted, nor is the task's
head, whose chunks are the same in all; gradients and activations are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.allocations import Allocations
from benchmarks.costs import AnchorRows
from benchmarks.meta import build, inputs
from benchmarks.settings import Settings
from benchmarks.shapes import lora
from pact_plugin.config import Anchors
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.head import LanguageHead, language_head


@dataclass(frozen=True)
class Peaks:
    """The most bytes of gradients and activations at any time of a step.

    Args:
        plain: Without anchors.
        together: The anchors' and the batch's activations are there at the same time.
        apart: The anchors' gradients are made before the forward pass of the batch.
    """

    plain: int
    together: int
    apart: int


def peaks(settings: Settings, anchors: AnchorRows) -> Peaks:
    """Of a first micro-batch, whose gradients are not there yet."""
    model = build(settings)
    model = lora(model, settings.rank) if settings.train == "lora" else model
    model.train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    head = language_head(model)
    sizes = settings.sizes

    def batch() -> Tensor:
        return head.decoder(**inputs(sizes.batch, sizes.length, head)).last_hidden_state.sum()

    def held() -> Tensor:
        return _divergence(head, anchors, anchors.buckets(settings.tokens, Anchors().top_k, sizes.vocab_size))

    def apart() -> None:
        held().backward()
        batch().backward()

    return Peaks(
        plain=_peak(model, lambda: batch().backward()),
        together=_peak(model, lambda: (batch() + held()).backward()),
        apart=_peak(model, apart),
    )


def _peak(model: Any, step: Callable[[], Any]) -> int:
    model.zero_grad()
    with Allocations() as allocations:
        step()
    return allocations.peak


def _divergence(head: LanguageHead, anchors: AnchorRows, tokens: int) -> Tensor:
    hidden = head.decoder(**inputs(anchors.rows, anchors.length, head)).last_hidden_state.flatten(0, 1)
    ids = torch.zeros(tokens, dtype=torch.long, device="meta")
    read = head.readout(hidden[: anchors.held], ids, chunk_size=2048)
    aligned = torch.zeros(anchors.held, tokens, device="meta"), torch.zeros(anchors.held, device="meta")
    return confidence_divergence(read.logprobs, aligned[0], read.log_rest, aligned[1]).mean()
