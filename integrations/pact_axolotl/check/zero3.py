"""DeepSpeed's third stage in an Axolotl configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pact_plugin.errors import AdapterError, ConfigError, PactError
from pact_plugin.model.ranks import ZERO3, ZERO3_REMEDY


def is_zero3(cfg: Mapping[str, Any]) -> bool:
    """Whether `deepspeed` partitions the parameters.

    Raises:
        ConfigError: Its file cannot be read.
    """
    content = cfg.get("deepspeed")
    if isinstance(content, str):
        try:
            content = json.loads(Path(content).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot be read ({error})",
                key="deepspeed",
                value=content,
                remedy="Correct the path or the file.",
            ) from error
    return isinstance(content, Mapping) and (content.get("zero_optimization") or {}).get("stage") == 3


def partitioned(cfg: Mapping[str, Any]) -> Iterator[PactError]:
    """An error where it does."""
    # A file that is not here yet is for `check` to report, and for the trainer to refuse.
    with suppress(ConfigError):
        if is_zero3(cfg):
            yield AdapterError(ZERO3, key="deepspeed", remedy=f"{ZERO3_REMEDY} Or set `pact: false`.")
