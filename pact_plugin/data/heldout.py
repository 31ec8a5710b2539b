"""A file of the user's own task that was held out of training: conversations, and the answers that are right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_plugin.data.prompt_files import json_lines
from pact_plugin.errors import ConfigError

FORMATS = (
    "Give a .jsonl file whose objects have a text `prompt` and a text `answer` or `completion`, or `messages` that end "
    "with the assistant's."
)


@dataclass(frozen=True)
class HeldOut:
    """One item of the task.

    Args:
        messages: The conversation up to the answer, as chat templates take it.
        answer: What the model should say.
        line: Where it stands in its file.
    """

    messages: tuple[dict[str, str], ...]
    answer: str
    line: int


def load_task(path: Path) -> tuple[HeldOut, ...]:
    """Read a file of held-out items.

    Args:
        path: `.jsonl`; each line has `prompt` and `answer` (or `completion`), or `messages`. A prompt and a completion
            may be lists of messages.

    Raises:
        ConfigError: It is missing, empty or not UTF-8, or a line is not of this format; the line is named.
    """
    try:
        rows = list(json_lines(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, f"cannot be read ({error})") from error
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    if not rows:
        raise _unusable(path, "holds no item")
    return tuple(_item(path, number, row) for number, row in rows)


def _item(path: Path, number: int, row: Mapping[str, Any]) -> HeldOut:
    answer = row.get("completion") if row.get("answer") is None else row["answer"]
    messages = row.get("messages") or [*_messages(row.get("prompt"), "user"), *_messages(answer, "assistant")]
    if not isinstance(messages, list) or len(messages) < 2 or not all(map(_is_message, messages)):
        raise _unusable(path, f"line {number} has no `prompt` with an `answer`, and no `messages`")
    *before, last = ({"role": one["role"], "content": one["content"]} for one in messages)
    if last["role"] != "assistant" or not last["content"].strip():
        raise _unusable(path, f"line {number} does not end with an answer of the assistant")
    return HeldOut(tuple(before), last["content"], number)


def _messages(value: Any, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return value if isinstance(value, list) else []


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)


def _unusable(path: Path, problem: str) -> ConfigError:
    return ConfigError(problem, key="task", value=str(path), remedy=FORMATS)
