"""The key `pact` of a LLaMA-Factory configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pact_transformers.errors import switched_off

from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError


def settings(arguments: Mapping[str, Any]) -> PactConfig:
    """The settings under `pact`.

    Args:
        arguments: Of a configuration file.

    Raises:
        ConfigError: It is missing, empty or off, has an unknown key, a value out of range, or keys that conflict.
    """
    value = arguments.get("pact")
    if value is False:
        raise switched_off()
    if value is None:
        found = "empty" if "pact" in arguments else "missing"
        raise ConfigError(
            f"it is {found}, which would leave the run unconstrained",
            key="pact",
            remedy="Write `pact: true`, or indent its settings below it.",
        )
    return PactConfig.of(value)


def output_of(arguments: Mapping[str, Any]) -> Path:
    """Where a run writes; transformers has a default, and knows `~`."""
    return Path(os.path.expanduser(str(arguments.get("output_dir") or "trainer_output")))
