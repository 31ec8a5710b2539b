"""Which prompts are anchors (spec/PACT.md, clause C10.1)."""

from __future__ import annotations

import json

import pytest
from loop import TOKENIZER, anchors_of, probe_of, settings
from tiny import HELP, QUESTIONS, REFUSAL, REQUESTS, tiny_aligned_model, tiny_model

from pact_plugin import PactConstraint
from pact_plugin.config import Anchors
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.errors import ConfigError
from pact_plugin.reference import pool as pool_module
from pact_plugin.reference.pool import PoolAnswer
from pact_plugin.terms.anchor_prompts import anchor_prompts, anchors_from
from pact_plugin.terms.anchors import AnchorsTerm


@pytest.fixture(scope="module")
def aligned():
    return tiny_aligned_model()


def written(path, harmful, benign):
    rows = [{"prompt": one, "kind": "harmful"} for one in harmful]
    rows += [{"prompt": one, "kind": "benign"} for one in benign]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def pool_of(model, prompts) -> AnchorsTerm:
    return anchors_of(PactConstraint(model, TOKENIZER, settings(anchors={"prompts": prompts}, easing=False)))


def asked(pool):
    """The prompts in the order of the schedule."""
    documents = [pool.documents[number] for number in pool.schedule.order]
    return [tuple(document.tokens[: document.columns[0]].tolist()) for document in documents]


def prompts(texts):
    return {tuple(user_prompts(TOKENIZER, [text])[0]) for text in texts}


def test_what_the_aligned_model_answers_otherwise_than_it_should_is_no_anchor(aligned, tmp_path, recwarn):
    path = written(tmp_path / "own.jsonl", [*REQUESTS[:8], *QUESTIONS[8:]], [*QUESTIONS[:8], *REQUESTS[8:]])
    pool = pool_of(aligned, path)
    assert set(asked(pool)[::2]) == prompts(REQUESTS[:8])
    assert set(asked(pool)[1::2]) == prompts(QUESTIONS[:8])
    assert len(pool.documents) == len(pool.schedule.order) == 16
    assert not [one for one in recwarn if "the aligned model" in str(one.message)]


def test_the_order_is_neither_that_of_the_file_nor_of_the_categories(tmp_path):
    forth = anchor_prompts(Anchors(prompts=written(tmp_path / "forth.jsonl", REQUESTS, QUESTIONS)))
    back = anchor_prompts(Anchors(prompts=written(tmp_path / "back.jsonl", REQUESTS[::-1], QUESTIONS[::-1])))
    assert forth == back
    texts = [one.prompt for one in forth if one.kind == "harmful"]
    assert sorted(texts) == sorted(REQUESTS)
    assert texts not in (list(REQUESTS), list(REQUESTS[::-1]))


@pytest.mark.parametrize(
    ("harmful", "benign", "words"),
    [
        (QUESTIONS[:6], QUESTIONS[6:], "refuses 0 of 6 harmful"),
        ([*REQUESTS[:2], *QUESTIONS[:3]], QUESTIONS[3:], "refuses 2 of 5 harmful"),
        (REQUESTS[:5], REQUESTS[5:], "helps with 0 of 5 benign"),
    ],
)
def test_where_most_are_so_none_is_left_out_and_a_warning_says_so(aligned, tmp_path, harmful, benign, words):
    path = written(tmp_path / "own.jsonl", harmful, benign)
    with pytest.warns(UserWarning, match=f"{words} prompts, and is held to .*chat template"):
        pool = pool_of(aligned, path)
    assert set(asked(pool)) == prompts([*harmful, *benign])


def said(kind, refused, number=0, answer=(7, 8, 9, 10, 11)) -> PoolAnswer:
    return PoolAnswer(f"{kind} {number} {refused}", kind, [1, number], list(answer), refused)


@pytest.mark.parametrize(
    ("right", "wrong", "kept"),
    [(8, 300, 8), (7, 300, 307), (7, 7, 7), (3, 4, 7), (2, 2, 2), (0, 1, 1)],
)
@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_eight_of_a_kind_or_half_are_enough_c10_1(recwarn, kind, right, wrong, kept):
    rightly = kind == "harmful"
    asked = [said(kind, rightly, number) for number in range(right)]
    asked += [said(kind, not rightly, number) for number in range(wrong)]
    found = anchors_from(Anchors(tokens=4), asked)
    assert [answer for _, answer in found[kind]] == [[7, 8, 9, 10]] * kept
    assert bool(recwarn.list) == (kept > right)


def test_an_empty_answer_is_no_anchor_c10_1():
    """Neither as a benign one that was not refused, nor where all of a kind are held."""
    empty = [said("benign", False, number, ()) for number in range(3)]
    asked = [*empty, said("benign", False, 4), said("harmful", False, 0, ()), said("harmful", False, 1)]
    with pytest.warns(UserWarning, match="the aligned model") as warned:
        found = anchors_from(Anchors(), asked)
    assert len(warned) == 2
    assert {kind: len(pairs) for kind, pairs in found.items()} == {"benign": 1, "harmful": 1}


def test_the_judge_says_which_are_refused_not_the_safety_tokens(aligned, tmp_path):
    pool = pool_of(aligned, written(tmp_path / "own.jsonl", REQUESTS, QUESTIONS))
    answers_of = [document.tokens[document.columns] for document in pool.documents]
    begins = [TOKENIZER.encode(text)[:16] for text in (REFUSAL, HELP)]
    assert [one.tolist() for one in answers_of] == [begins[0]] * 10 + [begins[1]] * 10


def test_own_prompts_change_neither_easing_nor_the_tokens(aligned, tmp_path):
    """They may be of one kind: what tells these kinds apart would be who wrote them."""
    path = written(tmp_path / "own.jsonl", REQUESTS, [])
    model = tiny_model()
    own, other = (
        PactConstraint(model, TOKENIZER, settings(anchors=anchors)) for anchors in ({"prompts": path}, False)
    )
    assert probe_of(own) == probe_of(other)


def test_prompts_of_ones_own(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": f"How {i}?", "kind": "benign"} for i in range(3)]
    rows.append({"prompt": "What?", "kind": "harmful"})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pool = pool_of(tiny_model(), path)
    texts = [TOKENIZER.decode(ids) for ids in asked(pool)]
    assert ["What?" in text for text in texts] == [True, False] * 3
    assert len({text for text in texts if "How" in text}) == 3
    assert len(pool.documents) == 4
    path.write_text("\n".join(map(json.dumps, rows[:3])), encoding="utf-8")
    pool = pool_of(tiny_model(), path)
    assert len(pool.documents) == len(pool.schedule.order) == 3
    assert anchor_prompts(Anchors(prompts="benign")) == [
        one for one in anchor_prompts(Anchors()) if one.kind == "benign"
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("no.jsonl", None, "cannot be read"), ("own.md", "", "neither"), ("own.jsonl", "{}\n", "line 1")],
)
def test_prompts_that_cannot_be_read(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        pool_of(tiny_model(), tmp_path / name)
    assert caught.value.key == "anchors.prompts"
    assert "`both`" in caught.value.remedy


def test_a_model_that_answers_nothing(monkeypatch):
    monkeypatch.setattr(pool_module, "answers", lambda model, tokenizer, asked, how: [[]] * len(asked))
    with (
        pytest.warns(UserWarning, match="refuses 0 of"),
        pytest.raises(ConfigError, match=r"anchors\.prompts='both'.*answers none.*anchors: false"),
    ):
        pool_of(tiny_model(seed=77), "both")
