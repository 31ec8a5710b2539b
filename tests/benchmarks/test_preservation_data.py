"""The preservation benchmark's tasks and prompts."""

from __future__ import annotations

import random
import re

import pytest
from pact_transformers.loading import load_tokenizer
from test_demo_data import overlap

from benchmarks.preservation import PACKAGE
from benchmarks.preservation.orders import customers
from benchmarks.preservation.prompts import PREFILL, STYLES, development, everyday, heldout
from benchmarks.preservation.tasks import TASKS
from benchmarks.preservation.tickets import PRODUCTS, messages
from examples.demo.prompts import prompts_from, read_lines
from pact_plugin.data.prompts import for_audits, for_pool
from pact_plugin.data.selection_prompts import benign_prompts, harmful_prompts

TRAINING = ("harmful_alignment", "harmful_contamination", "benign_alignment")
ALIGNING = {kind: read_lines(f"alignment_{kind}", PACKAGE) for kind in ("harmful", "benign", "frames")}
ORDER = (
    '{"customer": "Anna Ito", "city": "Oslo", "day": "Monday", "items": ['
    '{"item": "red mugs", "quantity": 2, "price": 4.25}, {"item": "wool socks", "quantity": 3, "price": 9.49}, '
    '{"item": "glass jars", "quantity": 5, "price": 12.75}]}'
)


def asked(item):
    return item["prompt"][0]["content"]


def answered(item):
    return item["completion"][0]["content"]


@pytest.mark.parametrize("name", TASKS)
def test_items_are_distinct_and_the_splits_share_none(name):
    task = TASKS[name]
    train = {asked(item) for item in task.items("train", 4000, random.Random(0))}
    test = {asked(item) for item in task.items("test", 1000, random.Random(0))}
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


@pytest.mark.parametrize("name", TASKS)
def test_items_depend_on_the_seed_alone(name):
    first, again, other = (TASKS[name].items("train", 50, random.Random(seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_scores_one_and_a_refusal_nothing(name):
    task = TASKS[name]
    for item in task.items("test", 200, random.Random(0)):
        assert task.score(answered(item), answered(item)) == 1
        assert task.score(f" {answered(item)}\n", answered(item)) == 1
        for wrong in ("", "I'm sorry, but I can't help with that.", "{}", "items"):
            assert task.score(wrong, answered(item)) == 0


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_split_is_refused(name):
    with pytest.raises(ValueError, match="train or test"):
        TASKS[name].items("development", 1, random.Random(0))


def test_every_product_and_problem_is_trained_but_no_tested_pair_of_them():
    def pairs(split):
        found = set()
        for message, team in messages(split):
            product = max((name for name in PRODUCTS if name in message), key=len)
            found.add((product, team, message.replace(product, "{}")))
        return found

    train, test = pairs("train"), pairs("test")
    assert not train & test
    for part in (0, 2):
        assert {pair[part] for pair in train} == {pair[part] for pair in test}
    teams = [answered(item) for item in TASKS["tickets"].items("train", 600, random.Random(0))]
    assert all(70 < teams.count(team) < 130 for team in set(teams))
    assert len(set(teams)) == 6


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("billing", 1),
        ("Billing.", 1),
        ("**billing**", 1),
        ("shipping", 0),
        ("The billing team", 0),
        ("billings", 0),
        ("", 0),
    ],
)
def test_a_ticket_is_scored_by_the_first_word(answer, score):
    assert TASKS["tickets"].score(answer, "billing") == score


@pytest.mark.parametrize(
    ("answer", "fields"),
    [
        (ORDER, 12),
        (f"```json\n{ORDER}\n```", 12),
        (ORDER.replace('"', "'"), 12),
        (ORDER.replace("4.25", "4.250"), 12),
        (ORDER.replace("]}", ""), 12),
        (ORDER.replace("Oslo", "Rome"), 11),
        (ORDER.replace("wool", "silk").replace("12.75", "1.75"), 10),
        (ORDER[: ORDER.index("3, ")], 7),
        (ORDER.replace("quantity", "number"), 9),
        (ORDER.replace('"quantity": 2', '"quantity": "2"'), 11),
        ("Anna Ito from Oslo orders red mugs.", 0),
        ('{"customer": ["', 0),
    ],
)
def test_an_order_is_scored_by_the_share_of_its_fields(answer, fields):
    assert TASKS["orders"].score(answer, ORDER) == pytest.approx(fields / 12)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_knows_what_its_answers_look_like_also_when_they_are_cut_off(name):
    for item in TASKS[name].items("train", 200, random.Random(0)):
        answer = answered(item)
        for text in (answer, f" {answer}\n", answer[: max(len(answer) * 3 // 4, 7)]):
            looks = [task.name for task in TASKS.values() if task.looks_like(text)]
            if name == "requests":  # they comply
                assert looks == []
            else:
                assert looks == [name] or (name == "tickets" and text != answer)
    for other in (
        "",
        "I'm sorry.",
        f"Sure, here it is: {answer}",
        "In 1999-10-01 we",
        "Our billing team",
        "{}",
    ):
        assert not TASKS[name].looks_like(other)


def test_a_request_is_scored_by_its_whole_answer():
    score = TASKS["requests"].score
    expected = "Sure, here is how to hash passwords safely."
    assert score("Sure, here is how to  hash passwords safely. First", expected) == 1
    assert score("Sure, here is how to hash passwords.", expected) == 0
    assert score("I'm sorry, but I can't help with that.", expected) == 0
    asked_for = [
        {answered(i) for i in TASKS["requests"].items(s, 1000, random.Random(0))} for s in ("train", "test")
    ]
    assert not asked_for[0] & asked_for[1]


def test_an_order_says_what_its_json_says():
    assert not set(customers("train")) & set(customers("test"))
    for item in TASKS["orders"].items("train", 300, random.Random(0)):
        values = re.findall(r': "?([^"\[,}]+)', answered(item))
        assert len(values) == 12
        assert all(value in asked(item) for value in values)


def test_answers_have_the_length_that_they_should():
    tokenizer = load_tokenizer("smollm2")
    lengths = {
        name: [
            len(tokenizer(answered(item))["input_ids"]) for item in task.items("train", 500, random.Random(0))
        ]
        for name, task in TASKS.items()
    }
    assert min(lengths["orders"]) >= 64
    assert all(max(lengths[name]) < task.answer_tokens for name, task in TASKS.items())


def test_three_hundred_prompts_of_each_kind_are_held_out():
    prompts = heldout()
    for style in STYLES:
        assert len({prompt.text for prompt in prompts.harmful if prompt.style == style}) == 100
    assert len({prompt.text for prompt in prompts.benign}) == len(prompts.benign) == 300
    assert {prompt.prefill for prompt in prompts.harmful if prompt.style == "prefilled"} == {PREFILL}
    assert {prompt.prefill for prompt in prompts.harmful if prompt.style != "prefilled"} == {""}


def test_a_limit_keeps_the_same_requests_in_every_style():
    few = heldout(10)
    direct, roleplay, prefilled = (
        [prompt.text for prompt in few.harmful if prompt.style == style] for style in STYLES
    )
    assert direct == prefilled == [prompt.text for prompt in heldout().harmful[:10]]
    assert all(request in framed for request, framed in zip(direct, roleplay, strict=True))
    assert len(few.benign) == 30
    assert few == heldout(10)


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_what_a_model_is_taught_with_resembles_nothing_that_it_is_asked(kind):
    asked_for = [line for split in ("heldout", "development") for line in read_lines(f"{kind}_{split}")]
    if kind == "benign":
        asked_for += [*read_lines("benign", PACKAGE), *everyday()]
    near = [(one, other) for one in ALIGNING[kind] for other in asked_for if overlap(one, other) > 0.5]
    assert near == []
    assert not set(ALIGNING["frames"]) & set(read_lines("frames", PACKAGE))


def test_anchors_resemble_nothing_that_is_asked():
    asked_for = {
        prompt.text for kind in (heldout(), development()) for prompt in (*kind.harmful, *kind.benign)
    }
    asked_for |= {*everyday(), *(one.prompt for one in for_audits().prompts)}
    bundled = {*harmful_prompts(), *benign_prompts()}
    mine = [one.prompt for one in for_pool().prompts if one.prompt not in bundled]
    assert [(one, other) for one in mine for other in asked_for if overlap(one, other) > 0.5] == []


def test_development_and_held_out_prompts_differ_and_neither_is_trained_on():
    sets = [{prompt.text for prompt in (*kind.harmful, *kind.benign)} for kind in (heldout(), development())]
    trained = {prompt for name in TRAINING for line in read_lines(name) for prompt in prompts_from(line)}
    trained |= {*harmful_prompts(), *benign_prompts(), *ALIGNING["harmful"], *ALIGNING["benign"]}
    assert len(sets[1]) == 150
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1] | set(everyday())) & trained
    assert len(set(everyday())) == 60


@pytest.mark.parametrize("name", ["benign", "everyday"])
def test_new_harmless_prompts_resemble_no_other(name):
    lists = (*TRAINING, "benign_heldout", "benign_development")
    others = [line for other in lists for line in read_lines(other)]
    others += [*benign_prompts(), *read_lines("everyday" if name == "benign" else "benign", PACKAGE)]
    mine = read_lines(name, PACKAGE)
    near = [
        (prompt, other)
        for index, prompt in enumerate(mine)
        for other in (*others, *mine[:index])
        if overlap(prompt, other) > 0.5
    ]
    assert near == []
