"""Which prompts are anchors (spec/PACT.md, clause C10.1)."""

from __future__ import annotations

import json

import pytest
import torch
from loop import TOKENIZER, anchors_of, settings
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model

from pact_plugin import PactConstraint
from pact_plugin.data.generation import Generation, answers, user_prompt
from pact_plugin.errors import ConfigError
from pact_plugin.terms import anchor_prompts as anchor_prompts_module
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.terms.anchors import AnchorsTerm
from pact_plugin.tokens.select import Selection, select_safety_tokens


@pytest.fixture(scope="module")
def aligned():
    model = tiny_aligned_model()
    return model, select_safety_tokens(
        model, TOKENIZER, Selection(harmful=REQUESTS, benign=QUESTIONS, top_k=16)
    )


def written(path, harmful, benign):
    rows = [{"prompt": one, "kind": "harmful"} for one in harmful]
    rows += [{"prompt": one, "kind": "benign"} for one in benign]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def pool_of(model, prompts, *, ratio=None, **changes) -> AnchorsTerm:
    block = {"prompts": prompts} | ({} if ratio is None else {"ratio": ratio})
    return anchors_of(PactConstraint(model, TOKENIZER, settings(anchors=block, **changes)))


def asked(pool):
    """The prompts in their turns."""
    documents = [pool.documents[number] for number in pool.turns]
    return [tuple(document.tokens[: document.columns[0]].tolist()) for document in documents]


def prompts(texts):
    return {tuple(user_prompt(TOKENIZER, text)) for text in texts}


def test_what_the_aligned_model_answers_otherwise_than_it_should_is_no_anchor(aligned, tmp_path, recwarn):
    model, tokens = aligned
    path = written(tmp_path / "own.jsonl", [*REQUESTS[:8], *QUESTIONS[8:]], [*QUESTIONS[:8], *REQUESTS[8:]])
    pool = pool_of(model, path, safety_tokens=tokens)
    assert set(asked(pool)[::2]) == prompts(REQUESTS[:8])
    assert set(asked(pool)[1::2]) == prompts(QUESTIONS[:8])
    assert len(pool.documents) == len(pool.turns) == 16
    assert not [one for one in recwarn if "anchors" in str(one.message)]


def test_the_order_is_neither_that_of_the_file_nor_of_the_categories(tmp_path):
    forth = anchor_prompts(str(written(tmp_path / "forth.jsonl", REQUESTS, QUESTIONS)))
    back = anchor_prompts(str(written(tmp_path / "back.jsonl", REQUESTS[::-1], QUESTIONS[::-1])))
    assert forth == back
    assert forth["harmful"] not in (list(REQUESTS), list(REQUESTS[::-1]))


def test_the_logits_of_an_answers_first_token_are_those_of_a_plain_pass(aligned):
    model, found = aligned[0].eval(), {}
    asked = [user_prompt(TOKENIZER, text) for text in (*REQUESTS[:3], "How?", *QUESTIONS[:3])]

    def first(places, rows):
        found.update(zip(places, rows, strict=True))

    said = answers(model, TOKENIZER, asked, Generation(3, 4), first=first)
    assert said == answers(model, TOKENIZER, asked, Generation(3, 4))
    with torch.no_grad():
        plain = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in asked])
    assert len({len(ids) for ids in asked}) > 1  # they are answered by length
    given = torch.stack([found[place] for place in range(len(asked))])
    torch.testing.assert_close(given, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("harmful", "benign", "words"),
    [
        (QUESTIONS[:6], QUESTIONS[6:], "refuse only 0 of 6 harmful"),
        ([*REQUESTS[:2], *QUESTIONS[:3]], QUESTIONS[3:], "refuse only 2 of 5 harmful"),
        (REQUESTS[:5], REQUESTS[5:], "answer only 0 of 5 benign"),
    ],
)
def test_where_most_are_so_none_is_left_out_and_a_warning_says_so(aligned, tmp_path, harmful, benign, words):
    model, tokens = aligned
    path = written(tmp_path / "own.jsonl", harmful, benign)
    with pytest.warns(UserWarning, match=f"{words} anchors.*chat template"):
        pool = pool_of(model, path, safety_tokens=tokens)
    assert set(asked(pool)) == prompts([*harmful, *benign])


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
    assert len(pool.documents) == len(pool.turns) == 3
    with pytest.raises(ConfigError, match=r"anchors\.ratio=2: .*of one kind.*Remove `ratio`"):
        pool_of(tiny_model(), path, ratio=2)
    assert anchor_prompts("benign") == {"benign": anchor_prompts("both")["benign"]}


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
    def nothing(model, tokenizer, asked, how, *, first):
        first(range(len(asked)), torch.zeros(len(asked), model.config.vocab_size))
        return [[]] * len(asked)

    monkeypatch.setattr(anchor_prompts_module, "answers", nothing)
    with pytest.raises(ConfigError, match=r"anchors\.prompts='both'.*answers none.*anchors: false"):
        pool_of(tiny_model(), "both")
