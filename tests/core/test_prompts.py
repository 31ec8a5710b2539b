"""The bundled prompts, and prompts from a user's own file."""

from __future__ import annotations

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import combinations

import pytest

from pact_plugin.data import selection_prompts as prompts
from pact_plugin.errors import ConfigError

SETS = {"harmful": prompts.harmful_prompts, "benign": prompts.benign_prompts}


@pytest.mark.parametrize("kind", SETS)
def test_the_bundled_sets_are_large_and_even(kind):
    counts = {category: len(SETS[kind](category)) for category in prompts.categories()}
    assert len(counts) >= 10
    assert min(counts.values()) >= 20
    assert sum(counts.values()) == len(SETS[kind]()) >= 200
    text = files("pact_plugin").joinpath("data", f"{kind}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert Counter(row["category"] for row in rows) == counts
    assert all(set(row) == {"category", "prompt"} for row in rows)


def _words(prompt: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", prompt.lower()))


def test_no_two_bundled_prompts_are_nearly_the_same():
    everything = [(prompt, _words(prompt)) for prompt in prompts.harmful_prompts() + prompts.benign_prompts()]
    for (one, words), (other, others) in combinations(everything, 2):
        shared = len(words & others)
        assert shared <= 0.5 * len(words | others), (one, other)
        # Comparing characters is slow; few pairs share enough words to need it.
        if shared >= 5:
            assert SequenceMatcher(None, one.lower(), other.lower()).ratio() < 0.8, (one, other)


@pytest.mark.parametrize("kind", SETS)
def test_bundled_prompts_are_short_single_lines(kind):
    for prompt in SETS[kind]():
        assert prompt == " ".join(prompt.split())
        assert 3 <= len(prompt.split()) <= 30


def test_an_unknown_category_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"category='astrology'.*weapons"):
        prompts.harmful_prompts("astrology")


def test_own_prompts_are_read_from_lines_and_from_json_lines(tmp_path):
    lines = tmp_path / "own.txt"
    lines.write_text("\ufeffFirst prompt?\r\n\n  Zweite Frage – ja? \nFirst prompt?\n", encoding="utf-8")
    assert prompts.load_prompts(lines) == ("First prompt?", "Zweite Frage – ja?")
    rows = tmp_path / "own.jsonl"
    rows.write_text('{"prompt": "a b"}\n\n{"prompt": "c\\nd", "category": "x"}\n', encoding="utf-8")
    assert prompts.load_prompts(str(rows)) == ("a b", "c\nd")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.txt", b"\n \n", "holds no prompt"),
        ("own.jsonl", b"", "holds no prompt"),
        ("own.jsonl", b'{"prompt": "a"}\nnot json\n', "line 2 is not JSON"),
        ("own.jsonl", b'{"text": "a"}\n', "line 1 has no string `prompt`"),
        ("own.jsonl", b'"a"\n', "line 1 has no string `prompt`"),
        ("own.jsonl", b'{"prompt": " "}\n', "line 1 has no string `prompt`"),
        ("own.txt", b"\xff\xfe\x00", "cannot be read"),
        ("own.csv", b"a\n", "neither a .txt nor a .jsonl"),
    ],
)
def test_bad_files_of_prompts_are_refused(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        prompts.load_prompts(file)
    assert str(file) in str(caught.value)
    assert ".jsonl" in caught.value.remedy


def test_a_missing_file_of_prompts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts.load_prompts(tmp_path / "missing.txt")
