"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

BUSY = 0.5
"""Load average, in processes, from which on others are taken to be computing."""


def describe(threads: int, device: str) -> dict[str, Any]:
    """Processor, accelerator, versions, and how busy the machine is, as plain JSON values."""
    load = os.getloadavg()[0]
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pact-plugin", "torch", "transformers", "trl", "peft")},
        "load_at_start": round(load, 2),
        "busy": load > BUSY,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
