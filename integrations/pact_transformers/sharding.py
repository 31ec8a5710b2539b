"""Parameters that are spread over the ranks of a Trainer: what the constraint can do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pact_plugin.errors import AdapterError
from pact_plugin.model.ranks import FSDP1, FSDP1_REMEDY, is_partitioned
from pact_plugin.model.wrappers import unwrap

if TYPE_CHECKING:
    from pact_plugin.config import PactConfig


def is_zero3(trainer: Any) -> bool:
    """Whether DeepSpeed partitions the parameters, by the trainer's arguments or by Accelerate's configuration."""
    plugin = getattr(trainer.args, "deepspeed_plugin", None)
    config = getattr(trainer.args, "hf_deepspeed_config", None) or getattr(plugin, "hf_ds_config", None)
    return config is not None and config.is_zero3()


def refuse_fsdp1(trainer: Any) -> None:
    """Raise `AdapterError` for the first version of FSDP, which flattens the parameters."""
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise AdapterError(FSDP1, key="fsdp", remedy=FSDP1_REMEDY)


def share_head(model: Any) -> None:
    """Tell DeepSpeed that the causal language model reads its head's weight itself, where it is partitioned.

    TRL's loss does so. DeepSpeed finds that out where it meets the weight in pieces, and not where a pass before, such
    as that of the table, has put it together.
    """
    if not is_partitioned(model):
        return
    from deepspeed import zero

    base = unwrap(model)
    for parameter in base.get_output_embeddings().parameters():
        zero.register_external_parameter(base, parameter)


def require_own_inputs(trainer: Any, config: PactConfig) -> None:
    """Refuse ranks that share a sequence, and anchors where they share a layer, as each rank would read others.

    Raises:
        AdapterError: Names context, sequence or tensor parallelism.
    """
    for key in ("cp_size", "sp_size"):
        if (size := _parallel(trainer, key)) > 1:
            raise AdapterError(
                "a rank with a part of a sequence does not see where its responses begin",
                key=key,
                value=size,
                remedy=f"Remove `{key}` from the parallelism configuration.",
            )
    if config.has_anchors and tensor_parallel(trainer) > 1:
        raise AdapterError(
            "ranks that share a layer would read different anchors",
            key="tp_size",
            value=tensor_parallel(trainer),
            remedy="Set `anchors: false`, or turn tensor parallelism off.",
        )


def tensor_parallel(trainer: Any) -> int:
    """Ranks that share a layer, and so their inputs."""
    return _parallel(trainer, "tp_size")


def _parallel(trainer: Any, key: str) -> int:
    return getattr(getattr(trainer.accelerator, "parallelism_config", None), key, 1) or 1
