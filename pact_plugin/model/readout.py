"""What a head says of safety tokens, label and the rest, in chunks; logits are not kept (spec/PACT.md, clause C6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pact_plugin.model.ranks import chunks, gathered

Logits = Callable[[Tensor], Tensor]
"""[n, d] -> [n, V]."""
Slope = Callable[[Tensor], Tensor | float]
"""Derivative of logits by what the projection returned, from the logits."""
Read = tuple[Tensor, Tensor, Tensor]
"""Logits of the safety tokens [N, K] and of the label [N], and the log-sum-exp over all other tokens [N]."""


def read_chunks(
    logits: Logits, projection: nn.Module, hidden: Tensor, ids: Tensor, labels: Tensor, chunk_size: int
) -> Read:
    """Read `chunk_size` positions at a time; under autograd the backward pass computes a chunk's logits again.

    Args:
        logits: The head.
        projection: The module in it.
        hidden: [N, d] final hidden states.
        ids: [K] safety tokens, or [N, K].
        labels: [N] tokens predicted.
        chunk_size: Positions per chunk.
    """

    def read(states: Tensor, tokens: Tensor, targets: Tensor) -> Read:
        return _read(logits(states), tokens, targets)

    parts = [
        checkpoint(read, *chunk, use_reentrant=False) if torch.is_grad_enabled() else read(*chunk)
        for chunk in _chunks(chunks(hidden, chunk_size, projection), ids, labels)
    ]
    return _joined(parts)


@dataclass(frozen=True)
class FrozenHead:
    """A linear head that is not trained.

    Args:
        logits: [n, d] -> [n, V], with what the model does to its logits.
        slope: Derivative of those by what the projection returned, from the logits.
        projection: The linear layer.
    """

    logits: Logits
    slope: Slope
    projection: nn.Linear


def read_frozen(
    head: FrozenHead,
    hidden: Tensor,
    ids: Tensor,
    labels: Tensor,
    chunk_size: int,
    distinct: tuple[Tensor, Tensor] | None = None,
) -> Read:
    """The same from a linear head that is not trained: its logits are computed once.

    The gradient of the log-sum-exp, one vector [d] for each position, is taken while the logits are there; those of
    single logits are rows of the head.

    Args:
        head: The head.
        hidden: [N, d] final hidden states.
        ids: [K] safety tokens, or [N, K].
        labels: [N] tokens predicted.
        chunk_size: Positions per chunk.
        distinct: Of [N, K] tokens the U distinct ones, and the place of each among them, [N, K].
    """
    return _Frozen.apply(hidden, head, (ids, distinct), labels, chunk_size)


def _chunks(parts: Sequence[Tensor], ids: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    sizes = [len(part) for part in parts]
    return zip(
        parts, ids.split(sizes) if ids.ndim == 2 else [ids] * len(parts), labels.split(sizes), strict=True
    )


def _read(logits: Tensor, ids: Tensor, labels: Tensor) -> Read:
    label = logits.gather(1, labels[:, None])[:, 0]
    if ids.ndim == 2:
        return logits.gather(1, ids), label, logits.scatter(1, ids, -torch.inf).logsumexp(1)
    return logits.index_select(1, ids), label, logits.index_fill(1, ids, -torch.inf).logsumexp(1)


def _joined(parts: list[Read]) -> Read:
    safety, label, outside = (torch.cat(part) for part in zip(*parts, strict=True))
    return safety, label, outside


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: FrozenHead,
        asked: tuple[Tensor, tuple[Tensor, Tensor] | None],
        labels: Tensor,
        chunk_size: int,
    ) -> Read:
        ids, distinct = asked
        parts: list[Read] = []
        gradients: list[Tensor] = []
        for states, tokens, targets in _chunks(chunks(hidden, chunk_size, head.projection), ids, labels):
            # Hooks that offload activations take the first backward pass that they see for that of the step.
            with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
                leaf = states.detach().requires_grad_()
                part = _read(
                    head.logits(leaf.view_as(leaf)), tokens, targets
                )  # some module hooks cannot bear a leaf
                (gradient,) = torch.autograd.grad(part[2].sum(), leaf)
            parts.append((part[0].detach(), part[1].detach(), part[2].detach()))
            gradients.append(gradient)
        safety, label, outside = _joined(parts)
        kept, ctx.places = ids, None
        if ids.ndim == 2:
            # Tokens of each position have many rows in common. To find them the host waits for an accelerator.
            kept, ctx.places = ids.unique(return_inverse=True) if distinct is None else distinct
        # The rows are kept, not the head: where it is sharded, it is gone by the time of the backward pass.
        with gathered(head.projection):
            rows = head.projection.weight[kept], head.projection.weight[labels]
        ctx.slope = head.slope
        ctx.save_for_backward(torch.cat(gradients), *rows, safety, label)
        return safety, label, outside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_safety: Tensor, by_label: Tensor, by_outside: Tensor) -> Any:
        outside, safety_rows, label_rows, safety, label = ctx.saved_tensors
        gradient = by_outside[:, None] * outside
        by_logit = by_safety * ctx.slope(safety)
        if ctx.places is not None:
            by_logit = by_logit.new_zeros(len(by_logit), len(safety_rows)).scatter(1, ctx.places, by_logit)
        gradient += by_logit @ safety_rows.to(by_safety.dtype)
        gradient += (by_label * ctx.slope(label))[:, None] * label_rows
        return gradient.to(outside.dtype), None, None, None, None
