"""Several processes: what they agree on, how they shard a model, and reading it in chunks beside that."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from pact_plugin.errors import ModelStructureError, ReferenceModelError

T = TypeVar("T")

FSDP1 = "FSDP's first version keeps parameters in flat pieces, which the constraint cannot read"
FSDP1_REMEDY = "Use FSDP2: `fsdp_version: 2`, or `version: 2` in `fsdp_config`."
ZERO3_HEAD = "single rows of a head in training cannot be read where ZeRO stage 3 has partitioned it"


NO_WEIGHTS = "every rank must hold the model's weights when PACT is attached"
WHOLE_ON_EVERY_RANK = "Load the whole model on every rank; with FSDP set `cpu_ram_efficient_loading: false`."


def require_weights(model: nn.Module) -> None:
    """Refuse a model without weights, as FSDP's memory-saving loading leaves it on all ranks but the first.

    Raises:
        ReferenceModelError: It is one.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ReferenceModelError(NO_WEIGHTS, key="model", remedy=WHOLE_ON_EVERY_RANK)


def is_distributed() -> bool:
    """Whether torch.distributed runs, with one rank or more."""
    return distributed.is_available() and distributed.is_initialized()


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass needs every rank: under FSDP2, and where DeepSpeed has partitioned the parameters."""
    return is_fsdp(model) or is_partitioned(model)


def sharding(model: nn.Module) -> str | None:
    """What has sharded the parameters, `fsdp` or `deepspeed`; None where nothing has."""
    return "fsdp" if is_fsdp(model) else "deepspeed" if is_partitioned(model) else None


def is_fsdp(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded the parameters."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def is_partitioned(model: nn.Module) -> bool:
    """Whether DeepSpeed has partitioned the parameters (ZeRO stage 3): it gives each a `ds_id`."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def partitioned_reference(name: str) -> ReferenceModelError:
    """That DeepSpeed partitions a reference that is named, which no engine would put together."""
    return ReferenceModelError(
        "DeepSpeed's ZeRO stage 3 partitions a second model, which nothing puts together",
        key="reference",
        value=name,
        remedy="Use `reference: auto`, ZeRO stage 2, or FSDP2.",
    )


def refuse_fsdp1(model: nn.Module) -> None:
    """Raise `ModelStructureError` for the first version of FSDP, which flattens the parameters."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ModelStructureError(FSDP1, key="fsdp", remedy=FSDP1_REMEDY)


def keep_root_whole(model: nn.Module) -> None:
    """Under FSDP2 what the root holds, such as the head, stays whole between a forward pass and its backward pass.

    This is torch's default, which trainers turn off. The constraint reads the head after the forward pass.
    """
    for module in model.modules():
        reshard: Any = getattr(module, "set_reshard_after_forward", None)
        if reshard is not None:
            reshard(False, recurse=False)
            return


def chunks(hidden: Tensor, size: int, module: nn.Module) -> list[Tensor]:
    """Rows in chunks, each of which a module is called on.

    Where a call of the module needs every rank, as it gathers parameters of its own, all ranks get the same number of
    chunks: a rank with fewer rows has empty ones at the end.

    Args:
        hidden: [N, d].
        size: Rows of a chunk.
        module: That is called.
    """
    parts = list(hidden.split(size))
    if needs_every_rank(module):
        most = torch.tensor(len(parts), device=hidden.device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        parts += [hidden[:0]] * (int(most) - len(parts))
    return parts


def needs_every_rank(module: nn.Module) -> bool:
    """Whether a call of a module gathers parameters of its own over the ranks."""
    sharded = any(hasattr(inner, "set_reshard_after_forward") for inner in module.modules())
    return world_size() > 1 and (sharded or is_partitioned(module))


def gathered(module: nn.Module) -> AbstractContextManager[Any]:
    """A module's own parameters are whole inside, where DeepSpeed has partitioned them; every rank has to enter."""
    partitioned = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    from deepspeed import zero

    context: AbstractContextManager[Any] = zero.GatheredParameters(partitioned)
    return context


def rank() -> int:
    """This process's rank, from 0."""
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of ranks."""
    return distributed.get_world_size() if is_distributed() else 1


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: Any) -> list[Any]:
    """Every rank's value, on every rank; also a barrier."""
    if not is_distributed():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
