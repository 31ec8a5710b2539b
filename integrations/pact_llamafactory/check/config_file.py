"""A configuration file of LLaMA-Factory: arguments by name, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pact_transformers.config_file import read_config, repeated_keys

from pact_plugin.errors import ConfigError

_OWN = {"model_name_or_path", "finetuning_type"}
"""Names that only LLaMA-Factory has, among the frameworks whose configurations are read."""


def is_llamafactory(path: Path) -> bool:
    """Whether a file is a configuration of LLaMA-Factory, by the names in it."""
    try:
        return bool(_OWN & _content(path).keys())
    except ConfigError:
        return False


def read(path: Path) -> dict[str, Any]:
    """The arguments in a file.

    Raises:
        ConfigError: There is no such file, or LLaMA-Factory could not read it.
    """
    content = _content(path)
    for key in repeated_keys(path, below=True):
        raise ConfigError(
            "it is there twice, at which LLaMA-Factory stops", key=key, remedy="Leave one of them."
        )
    return content


def _content(path: Path) -> dict[str, Any]:
    return read_config(path, "LLaMA-Factory", (".yaml", ".yml"))
