"""Tensors between the host and an accelerator, neither of which waits for the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device, without making the host wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class HostCopy:
    """Tensors on the host, copied from a CUDA device while it goes on working; from others when they are asked for.

    Args:
        tensors: By name. What the device computes after this call is not waited for.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: _queued(tensor.detach()) for name, tensor in tensors.items()}
        devices = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]

    def tensors(self) -> dict[str, Tensor]:
        """The copies; waits until they are there."""
        for event in self._copied:
            event.synchronize()
        return {name: tensor.cpu() for name, tensor in self._tensors.items()}


def _queued(tensor: Tensor) -> Tensor:
    """A copy of a CUDA tensor on the host, which is not there yet; any other tensor itself."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
