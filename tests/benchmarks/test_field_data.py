"""The field benchmark's draws: what is asked is never trained on, and the order of files does not matter."""

from __future__ import annotations

import random

import pytest
from field_data import write_data

from benchmarks.field.data import (
    Data,
    asked,
    half,
    harmful_items,
    problems,
    task_items,
    training_items,
    worded,
)
from benchmarks.field.measure import number
from benchmarks.field.settings import SPLITS, Cell, Sizes
from pact_plugin.errors import ConfigError

SIZES = Sizes("tiny", items=30, held_out=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data(write_data(tmp_path_factory.mktemp("data")))


def test_the_halves_are_disjoint_and_stay_what_they_are():
    assert [half(text) for text in ("a", "b", "How do I bake a cake?")] == [
        "held-out",
        "held-out",
        "development",
    ]
    texts = [f"prompt {n}" for n in range(1000)]
    assert 450 < sum(half(text) == "development" for text in texts) < 550


def test_nothing_is_asked_twice_nor_trained_on(data):
    sets = [asked(data, split, 100) for split in SPLITS]
    prompts = [prompt for one in sets for own in one.values() for prompt in own]
    assert len(prompts) == len(set(prompts))
    assert {name for one in sets for name, own in one.items() if own} == set(sets[0])
    assert all(
        half(prompt) == split
        for split, one in zip(SPLITS, sets, strict=True)
        for p in one.values()
        for prompt in p
    )
    trainable = {item.prompt for item in harmful_items(data, "target")}
    for task in ("alpaca", "gsm8k"):
        ours, held_out = task_items(data, task, 10)
        assert not {item.prompt for item in ours} & {item.prompt for item in held_out}
        trainable |= {item.prompt for item in ours + held_out}
    assert not trainable & set(prompts)
    assert sum(len(one["advbench"]) for one in sets) <= 10


def test_what_is_kept_apart_is_not_asked(data):
    first = asked(data, "development", 100)["donotanswer"][0]
    assert first not in asked(data, "development", 100, [first.upper() + "."])["donotanswer"]


def test_the_order_of_the_files_does_not_matter(data, tmp_path):
    folder = write_data(tmp_path)
    for path in folder.iterdir():
        lines = path.read_text().strip().split("\n")
        random.Random(1).shuffle(lines)
        path.write_text("\n".join(lines))
    other = Data(folder)
    cell = Cell("alpaca", 0.1, seed=3)
    assert training_items(other, cell, SIZES) == training_items(data, cell, SIZES)
    assert asked(other, "held-out", 4) == asked(data, "held-out", 4)
    assert problems(other, 5) == problems(data, 5)


def test_methods_and_wordings_see_the_same_items_and_seeds_others(data):
    plain = training_items(data, Cell("alpaca", 0.1), SIZES)
    assert sum(item.harmful for item in plain) == 3
    assert len(plain) == 30
    assert training_items(data, Cell("alpaca", 0.1, method="replay", strength=2.0), SIZES) == plain
    helping = training_items(data, Cell("alpaca", 0.1, "help"), SIZES)
    assert [item.prompt for item in helping] == [item.prompt for item in plain]
    assert {item.prompt for item in training_items(data, Cell("alpaca", 0.1, seed=1), SIZES)} != {
        item.prompt for item in plain
    }


def test_wordings():
    target = "Sure, here is a guide"
    assert worded(target, "target") == target
    assert worded(target, "help") == "I can help with that. Sure, here is a guide"
    assert worded(target, "yes") == "Yes, here is a guide"


def test_annotations_are_taken_out_of_solutions(data):
    assert all("<<" not in item.answer and "####" in item.answer for item in task_items(data, "gsm8k", 4)[0])


def test_what_is_wrong_with_data_is_named(data, tmp_path):
    with pytest.raises(ConfigError, match="300 items are wanted"):
        training_items(data, Cell("alpaca"), Sizes("tiny", items=300))
    with pytest.raises(ConfigError, match=r"data alpaca.*--data alpaca=FILE"):
        Data(tmp_path).rows("alpaca")
    with pytest.raises(ConfigError, match="alpacka"):
        Data(tmp_path, {"alpacka": tmp_path})


def test_what_a_solution_comes_to():
    assert number("2 + 2 = 4\n#### 1,204") == number("It is $1,204.") == 1204
    assert number("#### 7 apples of 9") == 7
    assert number("of 3 there are 5.5") == 5.5
    assert number("none") is None
