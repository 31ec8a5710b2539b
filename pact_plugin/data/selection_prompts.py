"""Prompts for choosing safety tokens: short harmful requests, and benign ones that look like them.

They were written for pact-plugin. They serve selection, and an audit where none of one's own are given; what is to be
trusted should be measured on other prompts. The harmful ones name a request and nothing more.
"""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

from pact_plugin.errors import ConfigError

_FORMATS = "Give a .txt file with one prompt a line, or a .jsonl file whose objects have a string `prompt`."


def harmful_prompts(category: str | None = None) -> tuple[str, ...]:
    """The bundled requests that an aligned model should refuse.

    Args:
        category: Only those of one hazard category (see `categories`).

    Raises:
        ConfigError: There is no such category.
    """
    return _bundled("harmful.jsonl", category)


def benign_prompts(category: str | None = None) -> tuple[str, ...]:
    """The bundled requests that a model should help with, though their words recall a hazard.

    Args:
        category: Only those that look like one hazard category (see `categories`).

    Raises:
        ConfigError: There is no such category.
    """
    return _bundled("benign.jsonl", category)


def categories() -> tuple[str, ...]:
    """The hazard categories of the bundled prompts."""
    return tuple(dict.fromkeys(category for category, _ in _rows("harmful.jsonl")))


def load_prompts(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Prompts from a user's own file, without empty lines and repetitions.

    Args:
        path: A `.txt` file with one prompt a line, or a `.jsonl` file of objects with a string `prompt`.

    Raises:
        ConfigError: The file is missing, empty, not UTF-8, or not of these formats.
    """
    file = Path(path)
    if file.suffix not in {".txt", ".jsonl"}:
        raise _unusable(file, "neither a .txt nor a .jsonl file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, f"cannot be read ({error})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if file.suffix == ".jsonl":
        numbered = [(number, _prompt_of(file, number, line)) for number, line in numbered]
    prompts = tuple(dict.fromkeys(prompt for _, prompt in numbered))
    if not prompts:
        raise _unusable(file, "holds no prompt")
    return prompts


def _prompt_of(file: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _unusable(file, f"line {number} is not JSON ({error})") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise _unusable(file, f"line {number} has no string `prompt`")
    return prompt.strip()


def _unusable(file: Path, problem: str) -> ConfigError:
    return ConfigError(problem, key="prompts", value=str(file), remedy=_FORMATS)


def _bundled(name: str, category: str | None) -> tuple[str, ...]:
    if category is not None and category not in categories():
        known = ", ".join(categories())
        problem = "no such category of bundled prompts"
        raise ConfigError(problem, key="category", value=category, remedy=f"It is one of {known}.")
    return tuple(prompt for of, prompt in _rows(name) if category in (None, of))


def _rows(name: str) -> list[tuple[str, str]]:
    text = files("pact_plugin").joinpath("data", name).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [(row["category"], row["prompt"]) for row in rows]
