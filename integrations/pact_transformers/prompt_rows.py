"""Prompts from a data set on the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from pact_plugin.errors import ConfigError, PluginError

_REMEDY = "Give a file, or a hub id such as `organisation/name` or `organisation/name:test`."


def prompt_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a data set, numbered from 1.

    Args:
        name: A hub id or a local data set's folder, with `:split` behind it if the data set has several.

    Raises:
        ConfigError: There is no such data set or split.
        PluginError: datasets is missing.
    """
    if importlib.util.find_spec("datasets") is None:
        raise PluginError("prompts from the hub need the package datasets", remedy="pip install datasets")
    from datasets import DatasetDict, load_dataset

    path, _, split = name.partition(":")
    try:
        data = load_dataset(path, split=split or None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be loaded ({error})", key="prompts", value=name, remedy=_REMEDY) from error
    if isinstance(data, DatasetDict):
        if len(data) > 1:
            raise ConfigError(
                f"it has the splits {', '.join(data)}",
                key="prompts",
                value=name,
                remedy=f"Name one: {path}:{next(iter(data))}.",
            )
        (data,) = data.values()
    return enumerate(data, 1)
