"""Hands the log-probabilities of the labels, which the task loss computes anyway, on to the constraint.

Two kinds of task loss have them: a fused head whose output has `log_probs` (TRL since 1.10), and the loss function of a
transformers model, on full logits. From any other the constraint gets nothing, and reads the head itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from pact_plugin.data.positions import IGNORE_INDEX
from pact_plugin.model.task_loss import label_losses
from pact_plugin.model.wrappers import is_compiled, unwrap


class LabelLogprobs:
    """What the task loss of one forward pass knew of its labels."""

    value: Tensor | None = None
    """[B, T - 1] log p of each label but the first column's, with gradient; None if it was not seen."""


@contextmanager
def label_logprobs(model: Any) -> Iterator[LabelLogprobs]:
    """Look at the first forward pass inside of a causal language model, given in its wrappers.

    Nothing is seen of a compiled model, since what is put in place here would be compiled anew in each step.

    Args:
        model: The model; None to look at nothing.
    """
    found = LabelLogprobs()
    if model is None or is_compiled(model):
        yield found
        return
    base = unwrap(model)

    def keep(module: Any, args: Any, output: Any) -> None:
        if found.value is None:
            found.value = getattr(output, "log_probs", None)

    handle = base.register_forward_hook(keep)
    loss = getattr(base, "loss_function", None)
    # One that was patched in before this module was imported has its own reasons, such as memory.
    stock = loss is ForCausalLMLoss and loss.__module__ == "transformers.loss.loss_utils"
    chosen = "_loss_function" in vars(base)
    if stock:
        base.loss_function = _Loss(found)
    try:
        yield found
    finally:
        handle.remove()
        if stock and chosen:
            base.loss_function = ForCausalLMLoss
        elif stock:
            del base._loss_function


class _Loss:
    """`ForCausalLMLoss` by way of each token's loss, which is kept: the same sum of the same numbers."""

    def __init__(self, found: LabelLogprobs) -> None:
        self._found = found

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORE_INDEX,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `transformers.loss.loss_utils.ForCausalLMLoss`."""
        usual = labels is not None and labels.shape == logits.shape[:-1] and logits.shape[-1] == vocab_size
        if (
            not usual
            or shift_labels is not None
            or ignore_index != IGNORE_INDEX
            or self._found.value is not None
        ):
            return ForCausalLMLoss(
                logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
            )
        assert labels is not None
        losses = label_losses(logits, labels)
        self._found.value = -losses
        count = (labels[..., 1:] != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / (count.to(losses.device) if torch.is_tensor(count) else count)
