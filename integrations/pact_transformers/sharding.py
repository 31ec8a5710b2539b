"""Parameters that are spread over the ranks of a Trainer: what the constraint can do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pact_plugin.errors import AdapterError
from pact_plugin.model.ranks import FSDP1, FSDP1_REMEDY, ZERO3, ZERO3_REMEDY

if TYPE_CHECKING:
    from pact_plugin.config import PactConfig


def is_zero3(trainer: Any) -> bool:
    """Whether DeepSpeed partitions the parameters, by the trainer's arguments or by Accelerate's configuration."""
    plugin = getattr(trainer.args, "deepspeed_plugin", None)
    config = getattr(trainer.args, "hf_deepspeed_config", None) or getattr(plugin, "hf_ds_config", None)
    return config is not None and config.is_zero3()


def refuse_unreadable(trainer: Any) -> None:
    """Refuse ways to spread parameters in which they are not to be had between forward passes.

    Raises:
        AdapterError: ZeRO stage 3, or the first version of FSDP.
    """
    if is_zero3(trainer):
        raise AdapterError(ZERO3, key="deepspeed", remedy=ZERO3_REMEDY)
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise AdapterError(FSDP1, key="fsdp", remedy=FSDP1_REMEDY)


def require_own_inputs(trainer: Any, config: PactConfig) -> None:
    """Refuse anchors where ranks share their inputs, as each would read others.

    Raises:
        AdapterError: Names tensor parallelism.
    """
    if config.has_anchors and tensor_parallel(trainer) > 1:
        raise AdapterError(
            "ranks that share a layer would read different anchors",
            key="tp_size",
            value=tensor_parallel(trainer),
            remedy="Set `anchors: false`, or turn tensor parallelism off.",
        )


def tensor_parallel(trainer: Any) -> int:
    """Ranks that share a layer, and so their inputs."""
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    return getattr(parallelism, "tp_size", 1) or 1
