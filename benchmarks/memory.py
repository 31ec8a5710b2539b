"""The peak of a process's memory: the allocator's on an accelerator, the resident set on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc returns freed tensors to the system at once: the resident set is then what is in use."""


class Peak:
    """Bytes at most in use since the last `reset`, beside those at the start.

    On Linux without an accelerator: VmHWM, which writing 5 to /proc/self/clear_refs sets back.

    Args:
        device: `cpu` or a CUDA device.
    """

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device) if device.startswith("cuda") else None
        self._start = 0 if self._cuda is not None else _status("VmRSS")

    def reset(self) -> None:
        """Start anew from what is in use now."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """The peak."""
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda)
        return _status("VmHWM") - self._start


def can_measure(device: str) -> bool:
    """Whether this machine can say it."""
    return device.startswith("cuda") or os.access("/proc/self/clear_refs", os.W_OK)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
