"""A configuration file of ms-swift: arguments by name, in YAML or JSON, as `swift sft` takes it in place of flags."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError, PactError, PluginError
from pact_swift.registration import noting

_OWN = {"external_plugins", "custom_register_path", "tuner_type", "model"}
"""Names that only ms-swift has, among the frameworks whose configurations are read."""
_ENDINGS = (".yaml", ".yml", ".json")


def is_swift(path: Path) -> bool:
    """Whether a file is a configuration of ms-swift, by the names in it."""
    try:
        return bool(_OWN & read(path).keys()) and "base_model" not in read(path)
    except ConfigError:
        return False


def read(path: Path) -> dict[str, Any]:
    """The arguments in a file, without the environment variables that it may set.

    Raises:
        ConfigError: There is no such file, or ms-swift could not read it.
    """
    if path.suffix not in _ENDINGS:
        raise _unusable(path, f"ms-swift reads {', '.join(_ENDINGS)}", "Rename the file.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, f"cannot be read ({error})", "Give a configuration file.") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise _unusable(path, f"neither YAML nor JSON: {reason}", "Correct the syntax.") from error
    if not isinstance(content, dict):
        raise _unusable(path, "not keys with values", "Give a configuration of ms-swift.")
    return {str(key): value for key, value in content.items() if key != "ENV"}


def registered(arguments: Mapping[str, Any]) -> Iterator[PactConfig | PactError]:
    """What the plugins of a configuration register, or why they cannot; each is run, as ms-swift would run it.

    Args:
        arguments: Of the file. Relative paths are taken from the working directory, as ms-swift does.
    """
    for key in ("external_plugins", "custom_register_path"):
        named = arguments.get(key) or []
        for plugin in [named] if isinstance(named, str) else named:
            yield from _run(key, str(plugin))


def _run(key: str, plugin: str) -> Iterator[PactConfig | PactError]:
    file = Path(plugin).expanduser().resolve()
    if not file.is_file():
        yield PluginError("there is no such file", key=key, value=plugin, remedy="Correct the path.")
        return
    before = list(sys.path)
    sys.path.insert(0, str(file.parent))
    try:
        with noting() as found:
            runpy.run_path(str(file))
    except PactError as error:
        yield error
    except Exception as error:  # whatever a user's file raises would stop the run
        yield PluginError(
            f"running it fails ({type(error).__name__}: {error})",
            key=key,
            value=plugin,
            remedy="Repair the file.",
        )
    else:
        yield from found
    finally:
        sys.path[:] = before


def _unusable(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, key="config", value=str(path), remedy=remedy)
