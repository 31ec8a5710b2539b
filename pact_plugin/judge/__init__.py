"""Judges: does an answer refuse, refuse in part, comply, or say nothing?

`is_refusal` is the default one: a small classifier for English answers, offline and without a framework, which reads
their first 300 characters. `find_judge` gives it and others by name; `guards` asks guard models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pact_plugin.judge.classifier import THRESHOLD, default_classifier
from pact_plugin.judge.names import find_judge
from pact_plugin.judge.verdicts import Judge, Judgement

__all__ = ["Judge", "Judgement", "answer_refuses", "find_judge", "is_refusal", "refusal_score"]


def is_refusal(text: str) -> bool:
    """Whether an answer refuses, in full or in part, going by its first 300 characters.

    Args:
        text: The answer, possibly cut off; English.
    """
    return refusal_score(text) >= THRESHOLD


def answer_refuses(tokenizer: Any, answer: Sequence[int]) -> bool:
    """`is_refusal` of an answer given by its token ids; special tokens are not read, and nothing is no refusal."""
    return bool(len(answer)) and is_refusal(tokenizer.decode(answer, skip_special_tokens=True))


@lru_cache(maxsize=1024)  # a pool is read again by each run of a process
def refusal_score(text: str) -> float:
    """How much an answer refuses, in [0, 1]; from `THRESHOLD` on it counts as a refusal.

    Args:
        text: The answer, possibly cut off; English.
    """
    return default_classifier().judgement(text).score or 0.0
