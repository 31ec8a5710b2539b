"""What depends on the device that trains: attention that torch cannot train on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pact_axolotl.check import memory
from pact_plugin.errors import AdapterError, PactError

_FLEX = "flex_attention"


def flex_attention_problems(cfg: Mapping[str, Any], device: memory.Device) -> Iterator[PactError]:
    """An error where a configuration asks for flex attention on a CPU, on which it has no backward pass.

    Args:
        cfg: An Axolotl configuration, as read from its file or as validated by Axolotl.
        device: Where the run trains.
    """
    key = _FLEX if cfg.get(_FLEX) else "attn_implementation"
    if device.is_cpu and (cfg.get(_FLEX) or cfg.get(key) == _FLEX):
        yield AdapterError(
            "torch cannot train with flex attention on a CPU, with or without PACT",
            key=key,
            value=cfg.get(key),
            remedy="Write `attn_implementation: sdpa`, or train on a GPU.",
        )


def require_flex_attention(cfg: Mapping[str, Any]) -> None:
    """Raise the first of these for the device of this process."""
    for problem in flex_attention_problems(cfg, memory.device()):
        raise problem
