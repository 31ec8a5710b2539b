"""What the classifier sees of an answer: cues, and one to three words in a row."""

from __future__ import annotations

import re
from collections.abc import Collection

from pact_plugin.judge.cues import CUES, HELPING
from pact_plugin.judge.keywords import declines
from pact_plugin.judge.text import beginning, tokens

WORDS_IN_A_ROW = 3
ELSE = "~"
"""Stands for one or more words that are not known: names, topics, whatever an answer is about."""
_SENTENCE_END = re.compile(r"[.!?:](?: |$)")
_SHORTEST = 20  # characters of a first sentence: "I'm sorry." alone says too little
_SOON = 100  # characters from the start within which declining outranks what comes later
_NGRAMS = 3.0  # length of the vector of n-grams of an answer that has many; a cue is 1
_MANY = 40  # n-grams; fewer make a shorter vector, so that one word alone decides nothing


def features(text: str, known: Collection[str]) -> dict[str, float]:
    """The features of an answer by name; those that are absent are zero.

    Args:
        text: The answer; only its `beginning` is read.
        known: Words that n-grams are made of; all others count as `ELSE`.
    """
    start = beginning(text)
    return _cues(start) | _ngrams(start, known)


def _cues(start: str) -> dict[str, float]:
    found: dict[str, float] = {}
    end = _SENTENCE_END.search(start, _SHORTEST)
    first = start[: end.end()] if end else start
    declining = CUES["declines"].search(start, 0, _SOON)
    for name, pattern in CUES.items():
        match = pattern.search(start)
        if match is None:
            continue
        if declining and name in HELPING and match.start() > declining.start():
            found[f"declines, {name}"] = 1.0  # "I can't do that. Here are some ideas:" is no helpful list
            continue
        found[name] = 1.0
        if pattern.search(first):
            found[f"first {name}"] = 1.0
    if declines(start):
        found["keywords"] = 2.0  # the strongest cue, so that it is regularised least
    if declining and declining.start() == 0:
        found["at once"] = 1.0
    return found


def _ngrams(start: str, known: Collection[str]) -> dict[str, float]:
    words = ["^"]
    for word in tokens(start):
        shown = word if word in known else ELSE
        if not shown == words[-1] == ELSE:
            words.append(shown)
    grams = {
        " ".join(words[place : place + length])
        for length in range(1, WORDS_IN_A_ROW + 1)
        for place in range(len(words) - length + 1)
        if any(word[0].isalnum() or word in "^¶" for word in words[place : place + length])
    }
    value = _NGRAMS / max(_MANY, len(grams)) ** 0.5
    return {f"'{gram}'": value for gram in grams}
