"""What the processes of a run agree on, where there are several."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import distributed, nn

from pact_plugin.errors import ModelStructureError

T = TypeVar("T")

ZERO3 = "ZeRO stage 3 keeps parameters empty between forward passes, where the constraint reads the head"
ZERO3_REMEDY = "Use ZeRO stage 2, or FSDP2."
FSDP1 = "FSDP's first version keeps parameters in flat pieces, which the constraint cannot read"
FSDP1_REMEDY = "Use FSDP2: `fsdp_version: 2`, or `version: 2` in `fsdp_config`."


def several() -> bool:
    """Whether torch.distributed runs, with one rank or more."""
    return distributed.is_available() and distributed.is_initialized()


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass needs every rank, as under FSDP."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def refuse_unreadable(model: nn.Module) -> None:
    """Refuse parameters that are not to be had between forward passes.

    Raises:
        ModelStructureError: DeepSpeed has partitioned them, or the first version of FSDP has flattened them.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ModelStructureError(ZERO3, key="deepspeed", remedy=ZERO3_REMEDY)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ModelStructureError(FSDP1, key="fsdp", remedy=FSDP1_REMEDY)


def rank() -> int:
    """Of this process, from 0."""
    return distributed.get_rank() if several() else 0


def ranks() -> int:
    """How many there are."""
    return distributed.get_world_size() if several() else 1


def of_first_rank(value: T) -> T:
    """Rank 0's value, on every rank."""
    if not several():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def of_every_rank(value: Any) -> list[Any]:
    """Every rank's value, on every rank; also a barrier."""
    if not several():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
