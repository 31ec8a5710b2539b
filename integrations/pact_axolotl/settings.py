"""The key `pact` of an Axolotl configuration, and what else of it decides how a run is constrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError

PLUGIN = "pact_axolotl.PactPlugin"
"""What `plugins:` must list."""

PREFERENCES = "dpo"
"""The kind of `rl` that can be constrained."""

_UNREADABLE = ("streaming", "pretraining_dataset", "processor_type")


def settings(cfg: Mapping[str, Any]) -> PactConfig | None:
    """The settings that a run is held to, or None where the configuration asks for no constraint.

    Raises:
        ConfigError: As `configured` does; or preferences are trained on, and a setting needs labels.
    """
    config = configured(cfg)
    return config.without_labels() if config is not None and cfg.get("rl") == PREFERENCES else config


def configured(cfg: Mapping[str, Any]) -> PactConfig | None:
    """The settings under `pact`, or None where the configuration asks for no constraint.

    Args:
        cfg: An Axolotl configuration, as read from its file or as validated by Axolotl.

    Raises:
        ConfigError: `pact` is empty, has an unknown key, a value out of range, or keys that conflict.
    """
    if "pact" not in cfg or cfg["pact"] is False:
        return None
    if cfg["pact"] is None:
        raise ConfigError(
            "it is empty, which would leave the run unconstrained",
            key="pact",
            remedy="Write `pact: true`, `pact: false`, or indent its settings below it.",
        )
    return PactConfig.of(plain(cfg["pact"]))


def output_of(cfg: Mapping[str, Any]) -> Path:
    """Where a run writes; Axolotl has a default."""
    return Path(str(cfg.get("output_dir") or "./model-out"))


def unreadable_data(cfg: Mapping[str, Any]) -> str | None:
    """The key of data that cannot be read before training: it has no length, or holds more than token ids."""
    return next((key for key in _UNREADABLE if cfg.get(key)), None)


def plain(value: Any) -> Any:
    """Plain dictionaries in place of Axolotl's, which answer None for every attribute."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value
