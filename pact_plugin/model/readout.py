"""What a head says of safety tokens, label and the rest, in chunks; full logits are not kept.

With the logits z [V] of a position, S the K tokens asked there and y its label (spec/PACT.md, clause C6.2):

    a = logsumexp of z over S,   b = logsumexp of z over all tokens outside of S
    log p(S) = -log(1 + exp(b - a))
    log r    = -log(1 + exp(a - b))
    log p(k) = z(k) - a + log p(S)

`RawReadout` holds z(k), z(y) and b; `LanguageHead.readout` computes the rest. Where the head is linear and not trained,
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
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pact_plugin.model.ranks import chunks, gathered
from pact_plugin.model.transfer import to_device

Logits = Callable[[Tensor], Tensor]
"""[n, d] -> [n, V]."""
Slope = Callable[[Tensor], Tensor | float]
"""Derivative f' of logits by what the projection returned, from the logits."""


class RawReadout(NamedTuple):
    """What is read of N positions, in at least float32."""

    safety: Float[Tensor, "N K"]
    """z(k): logits of the tokens asked."""
    label: Float[Tensor, " N"] | None
    """z(y): logit of the label; None without labels."""
    outside: Float[Tensor, " N"]
    """b: log-sum-exp over all other tokens."""


@dataclass(frozen=True)
class TokensOfEach:
    """Tokens of each of N positions, of which many have some in common."""

    ids: Int[Tensor, "N K"]
    unique_ids: Int[Tensor, " U"]
    """Each of them once."""
    inverse: Int[Tensor, "N K"]
    """`ids` is `unique_ids[inverse]`."""

    @classmethod
    def of(cls, ids: Int[Tensor, "N K"]) -> TokensOfEach:
        """From `ids` on the host: of those on an accelerator, `unique` would make the host wait."""
        return cls(ids, *ids.unique(return_inverse=True))

    def to(self, device: torch.device) -> TokensOfEach:
        """On a device; nothing waits for it."""
        return TokensOfEach(*(to_device(one, device) for one in (self.ids, self.unique_ids, self.inverse)))


Tokens = Tensor | TokensOfEach
"""The tokens that are read: [K], the same at all positions, or those of each."""


def read_chunks(
    logits: Logits,
    projection: nn.Module,
    hidden: Tensor,
    tokens: Tokens,
    labels: Tensor | None,
    chunk_size: int,
) -> RawReadout:
    """Read `chunk_size` positions at a time; under autograd the backward pass computes a chunk's logits again.

    Args:
        logits: The head.
        projection: The module in it.
        hidden: [N, d] final hidden states.
        tokens: That are read.
        labels: [N] tokens predicted, or None.
        chunk_size: Positions per chunk.
    """

    def read(states: Tensor, ids: Tensor, targets: Tensor | None) -> RawReadout:
        return _read(logits(states), ids, targets)

    parts = [
        checkpoint(read, *chunk, use_reentrant=False) if torch.is_grad_enabled() else read(*chunk)
        for chunk in _chunks(chunks(hidden, chunk_size, projection), tokens, labels)
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
    head: FrozenHead, hidden: Tensor, tokens: Tokens, labels: Tensor | None, chunk_size: int
) -> RawReadout:
    """The same from a linear head that is not trained: its logits are computed once.

    The gradient of the log-sum-exp, one vector [d] for each position, is taken while the logits are there; those of
    single logits are rows of the head.

    Args:
        head: The head.
        hidden: [N, d] final hidden states.
        tokens: That are read.
        labels: [N] tokens predicted, or None.
        chunk_size: Positions per chunk.
    """
    return RawReadout(*_Frozen.apply(hidden, head, tokens, labels, chunk_size))


def _chunks(
    parts: Sequence[Tensor], tokens: Tokens, labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    sizes = [len(part) for part in parts]
    ids = tokens.ids.split(sizes) if isinstance(tokens, TokensOfEach) else [tokens] * len(parts)
    return zip(parts, ids, [None] * len(parts) if labels is None else labels.split(sizes), strict=True)


def _read(logits: Tensor, ids: Tensor, labels: Tensor | None) -> RawReadout:
    """Of one chunk; `ids` is [K] or [N, K]."""
    label = None if labels is None else logits.gather(1, labels[:, None])[:, 0]
    if ids.ndim == 2:
        return RawReadout(logits.gather(1, ids), label, logits.scatter(1, ids, -torch.inf).logsumexp(1))
    return RawReadout(logits.index_select(1, ids), label, logits.index_fill(1, ids, -torch.inf).logsumexp(1))


def _joined(parts: list[RawReadout]) -> RawReadout:
    labels = [part.label for part in parts if part.label is not None]
    return RawReadout(
        torch.cat([part.safety for part in parts]),
        torch.cat(labels) if labels else None,
        torch.cat([part.outside for part in parts]),
    )


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: FrozenHead, tokens: Tokens, labels: Tensor | None, chunk_size: int
    ) -> RawReadout:
        parts: list[RawReadout] = []
        gradients: list[Tensor] = []
        states_of_chunks = chunks(hidden, chunk_size, head.projection)
        for states, ids, targets in _chunks(states_of_chunks, tokens, labels):
            # Hooks that offload activations take the first backward pass that they see for that of the step.
            with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
                leaf = states.detach().requires_grad_()
                # Some module hooks fail on a leaf.
                part = _read(head.logits(leaf.view_as(leaf)), ids, targets)
                (gradient,) = torch.autograd.grad(part.outside.sum(), leaf)
            label = None if part.label is None else part.label.detach()
            parts.append(RawReadout(part.safety.detach(), label, part.outside.detach()))
            gradients.append(gradient)
        read = _joined(parts)
        # The rows are kept, not the head: where it is sharded, it is gone by the time of the backward pass.
        if isinstance(tokens, TokensOfEach):
            asked, ctx.inverse = tokens.unique_ids, tokens.inverse
        else:
            asked, ctx.inverse = tokens, None
        with gathered(head.projection):
            safety_rows = head.projection.weight[asked]
            label_rows = None if labels is None else head.projection.weight[labels]
        ctx.slope = head.slope
        ctx.save_for_backward(torch.cat(gradients), safety_rows, label_rows, read.safety, read.label)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_safety: Tensor, by_label: Tensor | None, by_outside: Tensor) -> Any:
        outside_by_hidden, safety_rows, label_rows, safety, label = ctx.saved_tensors
        gradient = by_outside[:, None] * outside_by_hidden
        by_projected = by_safety * ctx.slope(safety)
        if ctx.inverse is not None:
            by_row = by_projected.new_zeros(len(by_projected), len(safety_rows))
            by_projected = by_row.scatter(1, ctx.inverse, by_projected)
        gradient += by_projected @ safety_rows.to(by_safety.dtype)
        if by_label is not None:
            gradient += (by_label * ctx.slope(label))[:, None] * label_rows
        return gradient.to(outside_by_hidden.dtype), None, None, None, None
