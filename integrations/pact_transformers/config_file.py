"""Configuration files of training frameworks: keys with values, in YAML or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pact_plugin.errors import ConfigError


def read_config(path: Path, framework: str, suffixes: Sequence[str] = ()) -> dict[str, Any]:
    """What stands in a configuration file, read by PyYAML's safe loader (anchors, merge keys, YAML 1.1) or as JSON.

    Args:
        path: The file.
        framework: Whose configuration it is.
        suffixes: Names that the framework reads must end in one of these; by default in any.

    Raises:
        ConfigError: There is no such file, or the framework could not read it.
    """
    if suffixes and path.suffix not in suffixes:
        raise _unusable(path, f"{framework} reads {' and '.join(suffixes)}", "Rename the file.")
    as_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if as_json else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, f"cannot be read ({error})", "Give a configuration file.") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        problem = f"not {'JSON' if as_json else 'YAML'}: {' '.join(str(error).split())}"
        raise _unusable(path, problem, "Correct the syntax.") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise _unusable(path, f"{found}, not keys with values", f"Give a configuration of {framework}.")
    return {str(key): value for key, value in content.items()}


def block_of(value: Any, key: str) -> dict[str, Any]:
    """A block of settings that stands in a configuration, or in a JSON file that it names; empty where it is neither.

    Raises:
        ConfigError: The file cannot be read.
    """
    if isinstance(value, str):
        try:
            value = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            remedy = "Correct the path or the file, or write its settings below the key."
            raise ConfigError(f"cannot be read ({error})", key=key, value=value, remedy=remedy) from error
    return dict(value) if isinstance(value, Mapping) else {}


def repeated_keys(path: Path, *, below: bool = False) -> Iterator[str]:
    """Keys of a YAML file that one mapping has more than once, of which its loader keeps the last.

    Args:
        path: The file.
        below: Whether to look into the values, too.
    """
    yield from _repeated(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), below)


def _repeated(node: Any, below: bool) -> Iterator[str]:
    seen = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.tag == "tag:yaml.org,2002:str":
            if key.value in seen:
                yield key.value
            seen.add(key.value)
        if below:
            yield from _repeated(value, below)


def _unusable(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, key="config", value=str(path), remedy=remedy)
