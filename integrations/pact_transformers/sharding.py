"""Parameters that are spread over the ranks of a Trainer: what the constraint can do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pact_plugin.data.generation import device_of
from pact_plugin.errors import AdapterError
from pact_plugin.model.ranks import FSDP1, FSDP1_REMEDY, is_fsdp, is_partitioned
from pact_plugin.model.wrappers import unwrap
from pact_transformers.errors import shared_layers

if TYPE_CHECKING:
    from pact_plugin.config import PactConfig


def sharded_by(trainer: Any) -> str | None:
    """What spreads the parameters over the ranks, `fsdp` or `deepspeed`; None where nothing does."""
    if trainer.is_fsdp_enabled or is_fsdp(trainer.model):  # transformers, too, shards, as it loads a model
        return "fsdp"
    plugin = getattr(trainer.args, "deepspeed_plugin", None)  # of Accelerate's configuration
    config = getattr(trainer.args, "hf_deepspeed_config", None) or getattr(plugin, "hf_ds_config", None)
    return "deepspeed" if config is not None and config.is_zero3() else None


def refuse_fsdp1_setting(trainer: Any) -> None:
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
    """Refuse anchors where ranks share their inputs, as each would read others.

    Raises:
        AdapterError: Names tensor parallelism.
    """
    if config.has_anchors and tensor_parallel(trainer) > 1:
        raise shared_layers("tp_size", tensor_parallel(trainer), "set `anchors: false`")


def refuse_split_sequences(trainer: Any) -> None:
    """Refuse ranks that share a sequence, and Unsloth's layers in parts, of which Accelerate knows nothing.

    Raises:
        AdapterError: Names context, sequence or tensor parallelism.
    """
    sizes = {key: _parallel(trainer, key) for key in ("cp_size", "sp_size")}
    sizes["context_parallel_size"] = getattr(trainer.args, "context_parallel_size", None) or 1  # Unsloth's
    for key, size in sizes.items():
        if size > 1:
            raise AdapterError(
                "a rank with a part of a sequence does not see where its responses begin",
                key=key,
                value=size,
                remedy=f"Remove `{key}`, and shorten `max_length` if memory does not suffice.",
            )
    if any("_unsloth_tp_style" in vars(module) for module in trainer.model.modules()):
        raise AdapterError(
            "ranks that share a layer would read different anchors, and each has a part of the head",
            key="UNSLOTH_TP_SIZE",
            remedy="Unset it.",
        )


def tensor_parallel(trainer: Any) -> int:
    """Ranks that share a layer, and so their inputs, by the model, by DeepSpeed or by Accelerate.

    Transformers 5.16 and older do not ask Accelerate.
    """
    return max(trainer.get_tp_size(), _parallel(trainer, "tp_size"))


def _parallel(trainer: Any, key: str) -> int:
    return getattr(getattr(trainer.accelerator, "parallelism_config", None), key, 1) or 1


def require_one_device(trainer: Any) -> None:
    """Refuse a model that cannot be asked where it is.

    Raises:
        AdapterError: Its layers are spread over several devices, or it waits on the CPU and has flash attention.
    """
    model = unwrap(trainer.model)
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1:
        raise AdapterError(
            "the model's layers are spread over several devices",
            key="device_map",
            value=sorted(places),
            remedy="Launch with `accelerate launch` or `torchrun`, make a single GPU visible, or load the model with "
            '`device_map={"": 0}`.',
        )
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    waits = device_of(model).type == "cpu" and trainer.accelerator.device.type != "cpu"
    if waits and "flash" in attention and not is_partitioned(model):
        raise AdapterError(
            "the trainer leaves the model on the CPU until training begins, as under FSDP and DeepSpeed, and flash "
            "attention does not run there",
            key="attn_implementation",
            value=attention,
            remedy="Call `trainer.model.to(trainer.accelerator.device)` before `pact.attach(trainer)` where a GPU "
            "holds the whole model, or use `attn_implementation: sdpa`.",
        )
