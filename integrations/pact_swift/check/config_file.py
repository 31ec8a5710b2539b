"""A configuration file of ms-swift: arguments by name, in YAML or JSON, as `swift sft` takes it in place of flags."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_transformers.config_file import read_config

from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError, PactError, PluginError
from pact_swift.registration import noting

_OWN = {"external_plugins", "custom_register_path", "tuner_type", "model"}
"""Names that only ms-swift has, among the frameworks whose configurations are read."""
_SWITCHES = {"true": True, "false": False}


def is_swift(path: Path) -> bool:
    """Whether a file is a configuration of ms-swift, by the names in it."""
    try:
        names = read(path).keys()
    except ConfigError:
        return False
    return bool(_OWN & names) and "base_model" not in names


def read(path: Path) -> dict[str, Any]:
    """The arguments in a file, without the environment variables that it may set.

    "true" and "false" in quotes mean what they say, as on the command line, to which ms-swift hands them.

    Raises:
        ConfigError: There is no such file, or ms-swift could not read it.
    """
    content = read_config(path, "ms-swift", (".yaml", ".yml", ".json"))
    return {
        key: _SWITCHES.get(value, value) if isinstance(value, str) else value
        for key, value in content.items()
        if key != "ENV"
    }


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
