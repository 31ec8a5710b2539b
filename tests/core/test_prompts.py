"""The bundled prompts."""

from __future__ import annotations

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import combinations

import pytest

from pact_plugin.data.prompts import KINDS, bundled


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundled_sets_are_large_and_even(kind):
    counts = Counter(one.category for one in bundled().prompts if one.kind == kind)
    assert len(counts) >= 10
    assert min(counts.values()) >= 20
    assert len(bundled().texts(kind)) == 220
    text = files("pact_plugin").joinpath("data", f"{kind}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert Counter(row["category"] for row in rows) == counts
    assert all(set(row) == {"category", "prompt"} for row in rows)


def _words(prompt: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", prompt.lower()))


def test_no_two_bundled_prompts_are_nearly_the_same():
    everything = [(prompt, _words(prompt)) for prompt in (one.prompt for one in bundled().prompts)]
    for (one, words), (other, others) in combinations(everything, 2):
        shared = len(words & others)
        assert shared <= 0.5 * len(words | others), (one, other)
        # Comparing characters is slow; few pairs share enough words to need it.
        if shared >= 5:
            assert SequenceMatcher(None, one.lower(), other.lower()).ratio() < 0.8, (one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_bundled_prompts_are_short_single_lines(kind):
    for prompt in bundled().texts(kind):
        assert prompt == " ".join(prompt.split())
        assert 3 <= len(prompt.split()) <= 30
