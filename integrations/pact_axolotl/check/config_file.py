"""An Axolotl configuration as its file says it, and what of it Axolotl would drop without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_transformers import errors
from pact_transformers.config_file import read_config, repeated_keys

from pact_axolotl.settings import PLUGIN
from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError, PactError

_WATCHED = ("pact", "plugins")


def located(path: Path) -> Path:
    """The file that a path means: of a folder, the one `.yml` or `.yaml` file in it, as for Axolotl.

    Raises:
        ConfigError: A folder with none or several.
    """
    if not path.is_dir():
        return path
    files = sorted([*path.glob("*.yml"), *path.glob("*.yaml")])
    if len(files) != 1:
        raise ConfigError(
            f"a folder with {len(files)} .yml or .yaml files",
            key="config",
            value=str(path),
            remedy="Name the configuration.",
        )
    return files[0]


def read(path: Path) -> dict[str, Any]:
    """A configuration, read by the loader that Axolotl uses.

    Raises:
        ConfigError: There is no such file, it is not YAML, or not a mapping.
    """
    return read_config(path, "Axolotl")


def repeated(path: Path) -> Iterator[PactError]:
    """`pact` or `plugins` given more than once."""
    for key in dict.fromkeys(repeated_keys(path)):
        if key in _WATCHED:
            problem = "given more than once, of which Axolotl reads only the last"
            yield ConfigError(problem, key=key, remedy="Give it once.")


def misspelt_keys(cfg: Mapping[str, Any], *, asked: bool = True) -> Iterator[PactError]:
    """Keys beside `pact` that were meant to be `pact`, or settings of it; Axolotl drops keys that it does not know.

    Args:
        cfg: The configuration.
        asked: Whether PACT is asked for in another way. If not, a key named like `pact` counts only with a value that
            `pact` could have, and one named like a setting is none.
    """
    inside = set(PactConfig.model_fields) if asked else set()
    for key in map(str, cfg):
        if key in _WATCHED:
            continue
        if _near_pact(key) and (asked or cfg.get(key) is True or isinstance(cfg.get(key), Mapping)):
            yield ConfigError(
                "Axolotl does not know this key and drops it",
                key=key,
                value=cfg.get(key),
                remedy="The key is called `pact`.",
            )
        elif key in inside:
            yield ConfigError(
                "a setting of PACT outside of its block, where Axolotl drops it",
                key=key,
                value=cfg.get(key),
                remedy=f"Indent it below `pact:`, as `pact: {{{key}: ...}}`.",
            )


def misplaced_keys(cfg: Mapping[str, Any]) -> Iterator[PactError]:
    """`pact` below another key, where Axolotl drops it or reads something else."""
    for place, value in _below(cfg):
        yield ConfigError(
            "it stands below another key, where Axolotl drops it",
            key=place,
            value=value if isinstance(value, bool) else None,
            remedy="Move it to the outermost level, without indentation.",
        )


def switched_off(cfg: Mapping[str, Any], misspelt: Iterable[PactError] = ()) -> Iterator[PactError]:
    """Why a configuration asks for no constraint, if it does; nothing where `pact` is merely `misspelt`."""
    if cfg.get("pact") is False:
        yield errors.switched_off()
    elif "pact" not in cfg and not list(misspelt):
        yield ConfigError(
            "it is missing, so this run is not constrained", key="pact", remedy="Add `pact: true`."
        )
    elif isinstance(cfg.get("pact"), Mapping) and cfg["pact"].get("weight") == 0:
        yield errors.only_measured()


def plugin_problems(cfg: Mapping[str, Any], *, needs_line: bool) -> Iterator[PactError]:
    """What is wrong with the line that brings the plugin.

    Args:
        cfg: The configuration.
        needs_line: Whether Axolotl does not load it without (before 0.21).
    """
    plugins = cfg.get("plugins")
    if plugins is not None and not isinstance(plugins, list):
        yield ConfigError("not a list", key="plugins", value=plugins, remedy=f"Write `plugins: [{PLUGIN}]`.")
        return
    entries = [str(plugin) for plugin in plugins or []]
    if has_plugin(cfg, colons=not needs_line):
        return
    near = [entry for entry in entries if _near_plugin(entry)]
    for entry in near:
        yield ConfigError(
            "Axolotl would not find this plugin, and may train on without it, unconstrained",
            key="plugins",
            value=entry,
            remedy=f"It is called `{PLUGIN}`.",
        )
    if not near and needs_line:
        yield ConfigError(
            "PACT's plugin is missing, without which Axolotl drops the key `pact` and trains unconstrained",
            key="plugins",
            value=plugins,
            remedy=f"Add `plugins: [{PLUGIN}]`." if not plugins else f"Add `- {PLUGIN}` to the list.",
        )


def has_plugin(cfg: Mapping[str, Any], *, colons: bool = False) -> bool:
    """Whether `plugins:` lists PACT's plugin; with `colons` also as `module:Class` (from Axolotl 0.21 on)."""
    plugins = cfg.get("plugins")
    entries = plugins if isinstance(plugins, list) else []
    return any((str(one).replace(":", ".") if colons else one) == PLUGIN for one in entries)


def with_known_plugin(cfg: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which a misspelt path of PACT's plugin is corrected, to find what else is wrong."""
    plugins = cfg.get("plugins")
    if not isinstance(plugins, list) or has_plugin(cfg):
        return cfg
    return {**cfg, "plugins": [PLUGIN if _near_plugin(str(one)) else one for one in plugins]}


def _near_pact(key: str) -> bool:
    plain = key.casefold().replace("-", "_").strip("_ ")
    return plain.startswith("pact") or difflib.SequenceMatcher(None, plain, "pact").ratio() >= 0.75


def _below(block: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every `pact` below the outermost level, with its place."""
    pairs = block.items() if isinstance(block, Mapping) else []
    for key, value in [*pairs, *(enumerate(block) if isinstance(block, list) else [])]:
        here = f"{place}.{key}" if place else str(key)
        if place and str(key).casefold() == "pact":
            yield here, value
        elif here != "pact":
            yield from _below(value, here)


def _near_plugin(entry: str) -> bool:
    parts = entry.casefold().replace(":", ".").split(".")
    return any(part.startswith("pact") for part in parts) or bool(
        difflib.get_close_matches(entry, [PLUGIN], n=1, cutoff=0.75)
    )
