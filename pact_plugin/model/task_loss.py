"""The task's loss for each label, which the constraint can use instead of reading the language-model head again."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

_IGNORED = -100


def label_losses(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """The cross-entropy of each label but the first column's in nats, in float32 at least; 0 where it is -100."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # All positions, the last one too: what leaves it out copies the logits.
    targets = F.pad(labels.to(logits.device), (0, 1), value=_IGNORED)[:, 1:]
    losses = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="none")
    return losses.view(targets.shape)[:, :-1]
