"""What an Axolotl configuration says of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UNREADABLE = ("streaming", "pretraining_dataset", "processor_type")


def unreadable(cfg: Mapping[str, Any]) -> str | None:
    """The key of data that cannot be read before training: it has no length, or holds more than token ids."""
    return next((key for key in _UNREADABLE if cfg.get(key)), None)
