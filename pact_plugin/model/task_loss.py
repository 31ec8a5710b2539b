"""What the task divides its loss by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pact_plugin.errors import AdapterError
from pact_plugin.model.head import LanguageHead
from pact_plugin.model.ranks import chunks

_IGNORE_INDEX = -100
_CHUNK = 256
"""Positions projected on the vocabulary at a time."""
_TOLERANCE, _ROUNDING = 0.05, 1e-3
"""Relative, for heads that round otherwise, and in nats."""


@torch.no_grad()
def summed_loss(
    head: LanguageHead, hidden: Float[Tensor, "B T d"], targets: Int[Tensor, "B T"]
) -> tuple[float, int]:
    """The cross-entropy of a micro-batch in nats, summed over its labels, and how many these are.

    Args:
        head: The model's head.
        hidden: Final hidden states.
        targets: The label that each position predicts; -100 where there is none.
    """
    kept = targets.to(hidden.device) != _IGNORE_INDEX
    states, labels = hidden[kept], targets.to(hidden.device)[kept]
    total = 0.0
    parts = chunks(states, _CHUNK, head.projection)
    for part, own in zip(parts, labels.split([len(part) for part in parts]), strict=True):
        total += F.cross_entropy(head.logits(part), own, reduction="sum").item()
    return total, len(labels)


def require_denominator(
    loss: float, summed: float, count: int, named: int | None, added: Sequence[float] = (0.0,)
) -> None:
    """Refuse a task loss that is not divided by what the constraint is divided by.

    Args:
        loss: What a model gave as the loss of a micro-batch, in nats.
        summed: The cross-entropy of its labels, summed.
        count: How many labels these are.
        named: The denominator that the model was given, as `num_items_in_batch`; None for the count.
        added: What the loss may hold beside, in nats: one of these.

    Raises:
        AdapterError: The loss is another than the sum by that denominator.
    """
    expected = summed / max(count if named is None else named, 1)
    loss = min((loss - one for one in added), key=lambda own: abs(own - expected))
    if abs(loss - expected) <= _TOLERANCE * expected + _ROUNDING:
        return
    ignored = named is not None and abs(loss - summed / count) <= _TOLERANCE * summed / count + _ROUNDING
    if ignored:
        problem = f"its loss is divided by {count} tokens, though it was given num_items_in_batch={named}"
        remedy = (
            "Use a model whose `forward` hands `num_items_in_batch` on to its loss, or set `easing: false`."
        )
    else:
        problem = f"its loss of {loss:.4g} is not the cross-entropy of its labels, {expected:.4g}"
        remedy = "Remove what weights the loss or adds to it, or set `easing: false`."
    raise AdapterError(
        f"{problem}; easing takes back part of a plain cross-entropy, and would be too weak or too strong",
        key="model",
        remedy=remedy,
    )
