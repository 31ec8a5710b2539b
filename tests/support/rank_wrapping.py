"""Models on several ranks, wrapped as torch, Axolotl and Accelerate wrap them, for rank_steps.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def wrap(model: Any, wrapper: str, ranks: int, *, root: bool | None = None, accelerate: bool = False) -> Any:
    """A model on several ranks.

    Args:
        model: The model.
        wrapper: `ddp` or `fsdp2`.
        ranks: How many there are.
        root: Of FSDP2: whether the root is sharded again after a forward pass; None has torch's default.
        accelerate: Of FSDP2: whether Accelerate shards it.
    """
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    if accelerate:
        return _by_accelerate(model, ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=root)


def _by_accelerate(model: Any, ranks: int) -> Any:
    """Its own function, with what it asks of an accelerator."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=init_device_mesh("cpu", (ranks,), mesh_dim_names=("dp",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=("dp",)),
        device=torch.device("cpu"),
        mixed_precision="no",
        is_main_process=distributed.get_rank() == 0,
    )
    return fsdp2_prepare_model(accelerator, model)


def no_sync(model: Any, last: bool) -> AbstractContextManager[Any]:
    """Whether a backward pass inside reduces gradients: in the last micro-batch of a step."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    model.set_requires_gradient_sync(last)
    return nullcontext()
