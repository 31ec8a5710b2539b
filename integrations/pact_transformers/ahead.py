"""The backward pass of the anchors, before the forward pass of a batch, in a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor
from transformers.training_args import OptimizerNames

from pact_plugin.model.ranks import is_fsdp
from pact_plugin.terms.step import Step

_STEPS_IN_BACKWARD = (OptimizerNames.LOMO, OptimizerNames.ADALOMO)


def goes_ahead(trainer: Any) -> bool:
    """Whether the anchors have a backward pass of their own: it saves memory, and suits any checkpointing.

    FSDP gathers parameters in the forward pass of the whole model, so there the anchors go after it, and are part of
    the batch's backward pass. So they are where an optimiser acts on each gradient at once, and under DDP with a static
    graph, which counts gradients: with two backward passes it would average none after the first step.
    """
    static = getattr(trainer.model_wrapped, "static_graph", False)
    return not (static or is_fsdp(trainer.model) or _steps_in_backward(trainer))


def backward_ahead(trainer: Any, anchors: Callable[[], Tensor], step: Step) -> Tensor:
    """Add the anchors' gradient to that of the step, scaled as the trainer will scale the batch's.

    Args:
        trainer: The trainer.
        anchors: Computes their part of the loss of a micro-batch.
        step: The optimiser step.

    Returns:
        That part, without gradient and not yet scaled.
    """
    with trainer.accelerator.autocast():
        part = anchors()
    loss = part if _scaled_for_accumulation(trainer, step) else part / step.micro_batches
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Accelerate's own would make the optimiser's step.
        engine = accelerator.deepspeed_engine_wrapped.engine
        engine.set_gradient_accumulation_boundary(is_boundary=False)
        engine.backward(loss, scale_wrt_gas=False)
    else:
        accelerator.backward(loss)
    return part.detach()


def _scaled_for_accumulation(trainer: Any, step: Step) -> bool:
    """Whether a loss is one of the whole step already; as in `Trainer.training_step`."""
    known: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)
    if known is not None:
        return known
    by_tokens = trainer.model_accepts_loss_kwargs and step.tokens is not None
    return by_tokens or trainer.compute_loss_func is not None


def _steps_in_backward(trainer: Any) -> bool:
    """Whether an optimiser acts on each gradient as soon as it is there, so that a second would be another step."""
    if trainer.args.optim in _STEPS_IN_BACKWARD:
        return True
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        return False  # its hooks reduce gradients
    return any(_hooks(parameter) for parameter in trainer.model.parameters())


def _hooks(parameter: Tensor) -> bool:
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))
