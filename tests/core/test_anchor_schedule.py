"""Which anchors are held in each step, and how much of their answers (spec/PACT.md, clause C10)."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from anchors import FIFTH, built, config
from hypothesis import given
from hypothesis import strategies as st
from loop import POSITIVE, TOKENIZER, a_batch, anchors_of, loss_of
from tiny import tiny_model, tiny_vocab_size

from pact_plugin import PactConstraint
from pact_plugin.config import Anchors
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.prompts import bundled
from pact_plugin.errors import ConfigError
from pact_plugin.terms import anchor_schedule
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.terms.anchor_schedule import Schedule, by_turns
from pact_plugin.terms.anchors import AnchorsTerm
from pact_plugin.terms.step import Step


@pytest.fixture
def pool() -> AnchorsTerm:
    return anchors_of(built(tiny_model(), anchors={"per_step": 4, "prompts": "both"}))


def test_the_same_part_of_each_kind_in_every_step():
    pool = anchors_of(built(tiny_model(), anchors={"per_step": 4, "prompts": "both"}))
    asked = anchor_prompts(Anchors())
    of = {tuple(user_prompts(TOKENIZER, [one.prompt])[0]): one.kind for one in asked}
    found = [of[tuple(d.tokens[: d.columns[0]].tolist())] for d in pool.documents]
    each = {"harmful": 2, "benign": 2}
    for step in range(1, 40):
        assert Counter(found[i] for i in pool.schedule.chosen(step, step % 3, 0, 1)) == each
    single = Schedule(pool.schedule.order, per_step=1)
    assert [found[single.chosen(step, 0, 0, 1)[0]] for step in range(1, 5)] == ["harmful", "benign"] * 2
    sentences = set(bundled().prompts)
    for kind in each:
        of_kind = [one for one in asked if one.kind == kind]
        count = len(of_kind)
        assert len({one.prompt for one in of_kind}) == count >= 300
        of_every_category = [index for index, one in enumerate(of_kind) if one in sentences]
        assert len(of_every_category) == 64
        assert all(
            sum(start <= i < start + count // 2 for i in of_every_category) >= 16 for start in (0, count // 2)
        )


def test_each_takes_its_turn_and_none_twice_in_a_step(pool, monkeypatch):
    size = len(pool.documents) // 8 * 8
    schedule = Schedule(list(range(size)), per_step=8)
    monkeypatch.setattr(anchor_schedule, "world_size", lambda: 2)
    steps = range(1, size // 8 + 1)
    for number in range(3):
        seen = [i for step in steps for rank in (0, 1) for i in schedule.chosen(step, number, rank, 1)]
        assert sorted(seen) == list(range(size))
    together = [i for number in range(4) for rank in (0, 1) for i in schedule.chosen(1, number, rank, 1)]
    assert len(set(together)) == len(together) == 32


@pytest.mark.parametrize(
    ("ranks", "micro_batches", "each"), [(1, 1, 8), (1, 4, 2), (2, 4, 1), (1, 3, 3), (2, 8, 1), (1, 20, 1)]
)
def test_a_steps_anchors_are_spread(pool, monkeypatch, ranks, micro_batches, each):
    size, everyone = len(pool.schedule.order), set(range(len(pool.documents)))
    monkeypatch.setattr(anchor_schedule, "world_size", lambda: ranks)
    schedule = Schedule(pool.schedule.order, per_step=8)

    def step(number: int) -> list[int]:
        parts = [
            schedule.chosen(number, micro_batch, rank, micro_batches)
            for rank in range(ranks)
            for micro_batch in range(micro_batches)
        ]
        assert {len(part) for part in parts} == {each}
        return list(chain.from_iterable(parts))

    together = each * ranks * micro_batches
    assert step(1) == pool.schedule.order[:together]
    assert step(2) == [pool.schedule.order[i % size] for i in range(together, 2 * together)]
    assert set(chain.from_iterable(map(step, range(1, size + 1)))) == everyone


@given(harmful=st.integers(0, 12), benign=st.integers(0, 40))
def test_every_anchor_has_its_turn_and_the_kinds_alternate(harmful, benign):
    found = by_turns(harmful, benign)
    assert set(found) == set(range(harmful + benign))
    if not harmful or not benign:
        assert found == list(range(harmful + benign))
        return
    assert all(first < harmful <= second for first, second in zip(found[::2], found[1::2], strict=True))
    taken = Counter(found)
    for part in (range(harmful), range(harmful, harmful + benign)):  # none twice more often than another
        assert max(taken[number] for number in part) - min(taken[number] for number in part) <= 1


def test_micro_batches_are_counted_within_a_step(monkeypatch):
    asked, model = [], tiny_model()
    constraint = built(model, easing=False)
    monkeypatch.setattr(Schedule, "chosen", lambda self, *turn: asked.append(turn) or [0])
    for step in (1, 1, 1, 2, 2, 7):
        loss_of(constraint, model, a_batch(), Step(step, micro_batches=3))
    assert asked == [(1, 0, 0, 3), (1, 1, 0, 3), (1, 2, 0, 3), (2, 0, 0, 3), (2, 1, 0, 3), (7, 0, 0, 3)]


# --- what is held of each ---


def test_the_answers_are_the_references():
    def texts(constraint: PactConstraint) -> list[list[int]]:
        return [document.tokens.tolist() for document in anchors_of(constraint).documents]

    aligned = tiny_model(seed=4)
    own = built(tiny_model(seed=4))
    ours = PactConstraint(tiny_model(), TOKENIZER, config(), reference_model=aligned)
    assert texts(ours) == texts(own) != texts(built(tiny_model()))
    document = anchors_of(own).documents[0]
    answer = aligned.generate(
        torch.from_numpy(document.tokens[: document.columns[0]])[None], max_new_tokens=16, do_sample=False
    )[0]
    assert answer[: len(document.tokens)].tolist() == document.tokens.tolist()
    assert not set(document.tokens[document.columns].tolist()) & set(TOKENIZER.all_special_ids)


@pytest.mark.parametrize("tokens", [1, 3])
def test_so_many_tokens_of_an_answer_are_held(tokens):
    term = anchors_of(built(tiny_model(), anchors={"tokens": tokens}))
    lengths = [len(document.columns) for document in term.documents]
    assert 0 < term.harmful < len(lengths)
    assert max(lengths[: term.harmful]) == max(lengths[term.harmful :]) == tokens


@pytest.mark.parametrize("name", ["top_k", "benign_top_k"])
def test_a_top_k_that_leaves_no_rest_is_refused(name):
    whole = tiny_vocab_size() - len(POSITIVE)
    with pytest.raises(ConfigError, match=rf"anchors\.{name}={whole}: .*Set it to less than {whole}\."):
        PactConstraint(tiny_model(), TOKENIZER, config(anchors={name: whole}))
    constraint = PactConstraint(tiny_model(), TOKENIZER, config(anchors={name: whole - 1}))
    model = constraint._student._model
    assert loss_of(constraint, model, a_batch(), FIFTH).isfinite()
