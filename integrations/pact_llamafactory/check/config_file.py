"""A configuration file of LLaMA-Factory: arguments by name, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pact_plugin.errors import ConfigError

_OWN = {"model_name_or_path", "finetuning_type"}
"""Names that only LLaMA-Factory has, among the frameworks whose configurations are read."""


def is_llamafactory(path: Path) -> bool:
    """Whether a file is a configuration of LLaMA-Factory, by the names in it."""
    try:
        return bool(_OWN & read(path).keys())
    except ConfigError:
        return False


def read(path: Path) -> dict[str, Any]:
    """The arguments in a file.

    Raises:
        ConfigError: There is no such file, or LLaMA-Factory could not read it.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise _unusable(path, "LLaMA-Factory reads .yaml and .yml", "Rename the file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, f"cannot be read ({error})", "Give a configuration file.") from error
    except yaml.YAMLError as error:
        raise _unusable(path, f"not YAML: {' '.join(str(error).split())}", "Correct the syntax.") from error
    if not isinstance(content, dict):
        raise _unusable(path, "not keys with values", "Give a configuration of LLaMA-Factory.")
    return {str(key): value for key, value in content.items()}


def _unusable(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, key="config", value=str(path), remedy=remedy)
