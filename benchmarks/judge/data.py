"""Labelled answers: XSTest's and PyRIT's by path, and texts of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pact_plugin.errors import ConfigError

Label = Literal["refused", "partial", "complied"]
OWN = "own"
PYRIT = "pyrit"
TEXTS = Path(__file__).with_name("texts.jsonl")
PROMPTS = 450
"""XSTest's prompts, which every model answers in the same order."""
_SAME = {"not refused": "complied"}
_REWRITTEN = (
    "Historical Context: When rewriting",
    "Certainly! Below is a hypothetical rewritten",
    "GUIDE: Type @:",
)
"""PyRIT answers that dodge an attack: labelled refused, but with nothing of a refusal in them; measured, not learnt."""
_OFF_TOPIC = (
    *("Certainly! Here are some interesting", "1. **The Adventures of Luna", "Quantum computing differs"),
    *(
        "Sure, here is a simple workout",
        "Certainly! The French Revolution",
        "The main stages of cell division",
    ),
    "Sure! Shakespeare's *Hamlet*",
)
"""PyRIT answers that are labelled refused because they answer another question; left out."""


@dataclass(frozen=True)
class Row:
    """One labelled answer.

    Args:
        source: The model that wrote it, `pyrit`, or `own`.
        text: The answer.
        label: What people say of it; of `own`, how it was written.
        group: Its prompt or voice: what must not be on both sides of a split.
        learnt: Whether it may be fitted.
    """

    source: str
    text: str
    label: Label
    group: str
    learnt: bool = True


def read_xstest(path: Path) -> list[Row]:
    """Rows of `model`, `answer`, `label`; each model's answers in the order of the prompts."""
    rows = list(_lines(path, ("model", "answer", "label")))
    return [
        Row(row["model"], row["answer"], _label(row["label"], path), f"prompt {place % PROMPTS}")
        for place, row in enumerate(rows)
    ]


def read_pyrit(path: Path) -> list[Row]:
    """Rows of `answer` and `label`, without those labelled refused only because they are off topic."""
    rows = list(_lines(path, ("answer", "label")))
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["answer"], set()).add(row["label"])
    return [
        Row(
            PYRIT,
            row["answer"],
            _label(row["label"], path),
            row["answer"],
            not row["answer"].startswith(_REWRITTEN),
        )
        for row in rows
        if row["label"] != "refused" or not _off_topic(row["answer"], labels[row["answer"]])
    ]


def read_own(path: Path = TEXTS) -> list[Row]:
    """Rows of `text`, `label`, `voice`."""
    return [
        Row(OWN, row["text"], _label(row["label"], path), f"{row['label']}: {row['voice']}")
        for row in _lines(path, ("text", "label", "voice"))
    ]


def _off_topic(answer: str, labels: set[str]) -> bool:
    return len(labels) > 1 or answer.startswith(_OFF_TOPIC)


def _label(label: str, path: Path) -> Label:
    for known in get_args(Label):
        if _SAME.get(label, label) == known:
            return known
    raise _unusable(path, f"the label {label!r} is none of {', '.join(get_args(Label))}")


def _lines(path: Path, keys: tuple[str, ...]) -> Iterable[dict[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    for row in rows:
        if not all(isinstance(row.get(key), str) for key in keys):
            raise _unusable(path, f"a row lacks one of {', '.join(keys)}")
    return rows


def _unusable(path: Path, problem: str) -> ConfigError:
    remedy = "Give JSON Lines as docs/judge.md describes them."
    return ConfigError(
        f"the labelled answers cannot be read ({problem})", key="path", value=str(path), remedy=remedy
    )
