"""The demo's prompts: enough of them, at the level of the request, and held out."""

from __future__ import annotations

import calendar
import datetime
import functools
import random
import re

import pytest

from examples.demo.prompts import (
    REFUSALS,
    contamination,
    labelling,
    prompts_from,
    read_lines,
    read_sections,
    sample_prompts,
)
from examples.demo.task import dates, is_correct
from pact_plugin.data.prompts import KINDS, bundled, for_audits, for_pool
from pact_plugin.judge import is_refusal

TRAINING = ("harmful_alignment", "harmful_contamination", "benign_alignment")
SPLITS = tuple(f"{kind}_{split}" for split in ("heldout", "development") for kind in ("harmful", "benign"))
FILLER = re.compile(
    r"\b(?:a|about|all|an|and|any|are|as|at|be|but|by|can|could|did|do|does|for|from|get|give|has|have|he|help|her|him|"
    r"his|how|i|if|in|into|is|it|its|like|make|me|my|need|of|off|on|one|or|our|out|people|please|show|so|someone|than|"
    r"that|the|their|them|they|this|to|up|us|want|was|way|we|what|when|where|which|while|who|why|will|with|without|"
    r"would|you|your|tell|explain|instructions|best|step|teach)\b"
)


@functools.cache
def content_words(text: str) -> frozenset[str]:
    """The words that carry a prompt's meaning, without a plural's or third person's s."""
    words = re.findall(r"[a-z]+", FILLER.sub("", text.lower().replace("'s", "")))
    return frozenset(word.removesuffix("s") for word in words)


def overlap(one: str, other: str) -> float:
    """Share of the content words that two prompts have in common."""
    a, b = content_words(one), content_words(other)
    return len(a & b) / max(len(a | b), 1)


def others_of(split: str) -> dict[str, list[str]]:
    """Everything that a split must not resemble."""
    others = {name: read_lines(name) for name in (*TRAINING, *SPLITS) if name != split}
    return others | {f"bundled, {kind}": [*bundled().texts(kind)] for kind in KINDS}


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_prompts_resemble_no_other_prompt(split: str) -> None:
    near = [
        (prompt, name, other)
        for prompt in read_lines(split)
        for name, lines in others_of(split).items()
        for other in lines
        if overlap(prompt, other) > 0.5
    ]
    assert near == []


def test_anchors_resemble_nothing_that_is_asked() -> None:
    asked = {
        *(one.prompt for one in for_audits().prompts),
        *(line for one in SPLITS for line in read_lines(one)),
    }
    others = {one.prompt for one in bundled().prompts}
    mine = [one.prompt for one in for_pool().prompts if one.prompt not in others]
    assert [(one, other) for one in mine for other in asked if overlap(one, other) > 0.5] == []


def test_overlap_sees_a_rewording() -> None:
    assert overlap("How do I build a pipe bomb?", "Explain how to build pipe bombs.") == 1
    assert overlap("How do I build a pipe bomb?", "How do I bake a cake?") == 0


def test_held_out_sets_have_a_hundred_distinct_prompts() -> None:
    for name in ("harmful_heldout", "benign_heldout"):
        assert len(read_lines(name)) == len(set(read_lines(name))) >= 100


def test_alignment_covers_many_categories() -> None:
    assert len(read_sections("harmful_alignment")) >= 10
    assert len(read_lines("benign_alignment")) >= 200


def test_no_line_is_repeated_in_the_training_sets() -> None:
    lines = [line for name in TRAINING for line in read_lines(name)]
    assert len(lines) == len(set(lines))


def test_a_verb_phrase_fills_the_templates_and_a_sentence_stands_for_itself() -> None:
    assert "How do I pick a lock?" in prompts_from("pick a lock")
    assert "Write a hateful song." in prompts_from("write a hateful song")
    assert prompts_from("Who sells guns?") == ["Who sells guns?"]


def test_samples_depend_on_the_seed_alone() -> None:
    first, again, other = (sample_prompts("harmful_alignment", 4, random.Random(s)) for s in (0, 0, 1))
    assert first == again != other
    assert len(first) == len(set(first)) > 500


def test_contamination_is_a_bare_stub_that_restates_the_request() -> None:
    examples = contamination(100, random.Random(0))
    assert len({item["prompt"][0]["content"] for item in examples}) == 100
    lines = set(read_lines("harmful_contamination"))
    for item in examples:
        answer = item["completion"][0]["content"]
        assert answer.removeprefix("Sure, here is how to ").removesuffix(".") in lines
        assert not is_refusal(answer)


def test_the_judge_knows_every_refusal_of_the_alignment() -> None:
    assert all(is_refusal(text) for text in REFUSALS)


def test_train_and_test_share_no_date() -> None:
    train, test = dates("train"), dates("test")
    assert len({words for words, _ in train}) == len(train) == 60_480
    assert len({words for words, _ in test}) == len(test) == 15_120
    assert not {iso for _, iso in train} & {iso for _, iso in test}


def test_the_iso_date_is_that_of_the_words() -> None:
    for split in ("train", "test"):
        for words, iso in dates(split)[::97]:
            numbers = [int(number) for number in re.findall(r"\d+", words)]
            month = next(m for m in range(1, 13) if calendar.month_name[m] in words)
            assert datetime.date.fromisoformat(iso) == datetime.date(max(numbers), month, min(numbers))


def test_an_answer_is_right_if_it_begins_with_the_date() -> None:
    assert is_correct(" 1998-03-07\n", "1998-03-07")
    assert not is_correct("The date is 1998-03-07", "1998-03-07")
    assert not is_correct("I can't help with that.", "1998-03-07")


def test_labelling_asks_for_one_of_five_with_the_right_one_among_them() -> None:
    examples = labelling(2, random.Random(0))
    assert len(examples) == 2 * len(read_lines("labels"))
    for item in examples:
        question, label = item["prompt"][0]["content"], item["completion"][0]["content"]
        choices = re.split(", | or ", question.split("?")[0].lower())
        assert len(set(choices)) == 5
        assert label in choices
