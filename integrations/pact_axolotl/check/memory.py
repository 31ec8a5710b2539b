"""How much memory a model needs beside another: estimated from its configuration, without its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

_GIB = 2**30
_CPU = "CPU"


@dataclass(frozen=True)
class Device:
    """Where a run would train, and the memory that is free there now, in bytes."""

    name: str
    free: int

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Size:
    """Parameters of a model, and of those that are trained where it is trained without an adapter."""

    parameters: int
    trained: int


def device() -> Device:
    """The first CUDA GPU, else the CPU with the system's memory."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Device(torch.cuda.get_device_name(), free)
    import psutil  # type: ignore[import-untyped]  # comes with accelerate, without which no Trainer runs

    return Device(_CPU, psutil.virtual_memory().available)


def size(config: Any, unfrozen: list[str] | None = None, *, trust_remote_code: bool = False) -> Size:
    """The size of the causal language model that a transformers configuration describes.

    Args:
        config: A `PretrainedConfig`.
        unfrozen: Axolotl's `unfrozen_parameters`: patterns of names, in which a dot is a dot unless a plus follows.
        trust_remote_code: Whether the model's own code may run.

    Raises:
        ValueError: It describes no causal language model, or one of untrusted code.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    names = [
        re.sub(r"\[\d*(:\d*)?\]$", "", name) for name in unfrozen or []
    ]  # a range of rows: all are copied
    patterns = [re.compile(re.sub(r"\.(?!\+)", r"\.", name)) for name in names]
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = [n for name, n in counts.items() if not patterns or any(p.match(name) for p in patterns)]
    return Size(sum(counts.values()), sum(trained))


def bytes_per_parameter(cfg: Mapping[str, Any]) -> float:
    """Of the weights that are not quantised, as Axolotl loads them (`bf16: auto` is 16 bits on any device)."""
    half = ("bf16", "bfloat16", "fp16", "float16", "load_in_8bit")
    return 2 if any(cfg.get(key) for key in half) else 4


def base_bytes_per_parameter(cfg: Mapping[str, Any]) -> float:
    """Of the model in training: as above, or a byte or half a byte where it is quantised."""
    if cfg.get("load_in_4bit"):
        return 0.5
    return 1 if cfg.get("load_in_8bit") else bytes_per_parameter(cfg)


def readable(size: float) -> str:
    """A size for the eye."""
    return f"{size / _GIB:.1f} GiB" if size >= 0.1 * _GIB else f"{size / 2**20:.1f} MiB"
