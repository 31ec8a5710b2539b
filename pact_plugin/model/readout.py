"""What a head says of safety tokens, label and the rest, in chunks; full logits are not kept.

With the logits z [V] of a position, S the K tokens asked there and y its label (spec/PACT.md, clause C6.2):

    a = logsumexp of z over S,   b = logsumexp of z over all tokens outside of S
    log p(S) = -log(1 + exp(b - a))
    log r    = -log(1 + exp(a - b))
    log p(k) = z(k) - a + log p(S)

`Read` holds z(k), z(y) and b; `LanguageHead.readout` computes the rest. Where the head is linear and not trained,
z = f(W h), with f what the model does to its logits and W(k) the row of token k:

    dz(k)/dh = f'(z(k)) · W(k)
    db/dh    = sum over j outside of S of exp(z(j) - b) · f'(z(j)) · W(j)

The first needs few rows of W, and is computed in the backward pass. The second needs all logits, and is computed in the
forward pass, while a chunk's logits are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pact_plugin.model.ranks import chunks, gathered

Logits = Callable[[Tensor], Tensor]
"""[n, d] -> [n, V]."""
Slope = Callable[[Tensor], Tensor | float]
"""Derivative f' of logits by what the projection returned, from the logits."""


class Read(NamedTuple):
    """What is read of N positions, in at least float32."""

    safety: Float[Tensor, "N K"]
    """z(k): logits of the safety tokens."""
    label: Float[Tensor, " N"]
    """z(y): logit of the label."""
    outside: Float[Tensor, " N"]
    """b: log-sum-exp over all tokens but the safety tokens."""


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
    unique: tuple[Tensor, Tensor] | None = None,
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
        unique: Of [N, K] tokens `unique_ids` [U] and `inverse` [N, K], so that `ids` is `unique_ids[inverse]`.
    """
    # Tokens of each position have many rows in common. To find them the host waits for an accelerator.
    unique_ids, inverse = (ids, None) if ids.ndim == 1 else unique or ids.unique(return_inverse=True)
    asked = _Asked(ids, unique_ids, inverse)
    return Read(*_Frozen.apply(hidden, head, asked, labels, chunk_size))


def _chunks(parts: Sequence[Tensor], ids: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    sizes = [len(part) for part in parts]
    return zip(
        parts, ids.split(sizes) if ids.ndim == 2 else [ids] * len(parts), labels.split(sizes), strict=True
    )


def _read(logits: Tensor, ids: Tensor, labels: Tensor) -> Read:
    label = logits.gather(1, labels[:, None])[:, 0]
    if ids.ndim == 2:
        return Read(logits.gather(1, ids), label, logits.scatter(1, ids, -torch.inf).logsumexp(1))
    return Read(logits.index_select(1, ids), label, logits.index_fill(1, ids, -torch.inf).logsumexp(1))


def _joined(parts: list[Read]) -> Read:
    return Read(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Asked(NamedTuple):
    """The tokens that are asked, and the rows of the head that they need."""

    ids: Tensor
    """[K], or [N, K]."""
    unique_ids: Tensor
    """[U]: each of them once."""
    inverse: Tensor | None
    """[N, K], `ids` is `unique_ids[inverse]`; None where all positions have the same tokens."""


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: FrozenHead, asked: _Asked, labels: Tensor, chunk_size: int
    ) -> Read:
        parts: list[Read] = []
        gradients: list[Tensor] = []
        states_of_chunks = chunks(hidden, chunk_size, head.projection)
        for states, tokens, targets in _chunks(states_of_chunks, asked.ids, labels):
            # Hooks that offload activations take the first backward pass that they see for that of the step.
            with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
                leaf = states.detach().requires_grad_()
                # Some module hooks fail on a leaf.
                part = _read(head.logits(leaf.view_as(leaf)), tokens, targets)
                (gradient,) = torch.autograd.grad(part.outside.sum(), leaf)
            parts.append(Read(*(tensor.detach() for tensor in part)))
            gradients.append(gradient)
        read = _joined(parts)
        # The rows are kept, not the head: where it is sharded, it is gone by the time of the backward pass.
        with gathered(head.projection):
            rows = head.projection.weight[asked.unique_ids], head.projection.weight[labels]
        ctx.slope, ctx.inverse = head.slope, asked.inverse
        ctx.save_for_backward(torch.cat(gradients), *rows, read.safety, read.label)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_safety: Tensor, by_label: Tensor, by_outside: Tensor) -> Any:
        outside_by_hidden, safety_rows, label_rows, safety, label = ctx.saved_tensors
        gradient = by_outside[:, None] * outside_by_hidden
        by_projected = by_safety * ctx.slope(safety)
        if ctx.inverse is not None:
            by_row = by_projected.new_zeros(len(by_projected), len(safety_rows))
            by_projected = by_row.scatter(1, ctx.inverse, by_projected)
        gradient += by_projected @ safety_rows.to(by_safety.dtype)
        gradient += (by_label * ctx.slope(label))[:, None] * label_rows
        return gradient.to(outside_by_hidden.dtype), None, None, None, None
