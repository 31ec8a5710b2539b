"""Nothing that no term asks for is computed, stored or logged."""

from __future__ import annotations

import weakref

import pytest
import torch
from loop import (
    FEW_ANCHORS,
    POSITIVE,
    PUBLISHED,
    TOKENIZER,
    TOKENS,
    a_batch,
    adapted,
    calls_of_sources,
    loss_of,
    measured,
    moved,
    probe_of,
    settings,
)
from tiny import tiny_model
from turns import EAGER, by_hand, conversations, padded

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.data.documents import documents_of
from pact_plugin.data.positions import positions_of
from pact_plugin.reference.choose import RunFacts
from pact_plugin.reference.columns import Columns, furthest
from pact_plugin.terms.step import Step

IDS = tuple(POSITIVE)
BOTH = {"logprobs", "log_rest"}
ANCHORS_ALONE = {"easing": False, "anchors": FEW_ANCHORS}


def built(model, **changes) -> PactConstraint:
    return PactConstraint(model, TOKENIZER, settings(**changes))


def asked(constraint) -> dict[str, list[Columns]]:
    return {term.name: list(term.columns) for term in constraint.terms}


def test_by_default_the_table_holds_one_number_for_each_response(tmp_path):
    config = PactConfig(safety_tokens=TOKENS, advanced={"store": tmp_path})
    constraint = PactConstraint(tiny_model(), TOKENIZER, config)
    (column,) = constraint.reference.table.columns
    assert column == Columns("linear", (), 1, linear=probe_of(constraint))
    assert column.width == 1
    assert asked(constraint) == {"easing": [column], "anchors": []}
    assert constraint.record.receipt.terms == ["easing", "anchors"]
    batch = a_batch(rows=2, width=40)
    batch["labels"][:] = -100
    for row, response in ((0, slice(4, 8)), (1, slice(4, 30)), (1, slice(38, 40))):
        batch["labels"][row, response] = 50
    constraint.fill([batch], progress=False)
    table = constraint.reference.table
    found = table.fetch(documents_of(batch, positions_of(batch, 1)), torch.device("cpu"))
    assert {one: tuple(values.shape) for one, values in found.items()} == {column: (3, 1)}
    assert [table.bytes_of(one) for one in documents_of(batch, positions_of(batch))] == [46, 48]
    assert (tmp_path / "header.json").read_text().count('"kind"') == 1


@pytest.mark.parametrize(
    ("changes", "kinds", "positions"),
    [
        ({}, {"linear"}, 1),
        ({"easing": {"first": "all"}}, {"linear"}, 1),
        ({"easing": False, "hold_data": True}, BOTH, None),
        ({"easing": {"first": 9}, "hold_data": {"first": 7}}, {"linear"} | BOTH, 7),
        ({"hold_data": True}, {"linear"} | BOTH, None),
        (ANCHORS_ALONE, set(), 0),
        (PUBLISHED, {"logits"}, None),
        ({"easing": False, "advanced": {"published": {"first": 5}}}, {"logits"}, 5),
    ],
)
def test_which_columns_the_terms_ask(changes, kinds, positions):
    columns = [one for own in asked(built(tiny_model(), **changes)).values() for one in own]
    assert {one.kind for one in columns} == kinds
    assert {one.ids for one in columns if one.kind in BOTH} <= {IDS}
    assert furthest(columns) == positions


def test_the_published_objective_asks_for_all_tokens_and_behind_its_header_until_the_gate_ends():
    header = tuple(TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False))
    whole, behind = asked(built(tiny_model(), **PUBLISHED))["published"]
    assert whole == Columns("logits", TOKENS.ids)
    assert behind == Columns("logits", TOKENS.ids, 82, behind=header)
    closed = {"easing": False, "advanced": {"published": {"boost": 0}}}
    assert asked(built(tiny_model(), **closed))["published"] == [whole]


OF_ANCHORS = ("anchor_divergence", "refusal_shift")
LOGGED = {
    "default": ({}, {"eased", "loss", *OF_ANCHORS}, {"eased"}),
    "easing": ({"anchors": False}, {"eased"}, {"eased"}),
    "anchors": ({"easing": False}, {"loss", *OF_ANCHORS}, set()),
    "hold": ({"easing": False, "anchors": False, "hold_data": True}, *[{"loss", "divergence"}] * 2),
    "published": (PUBLISHED, *[{"loss", "divergence"}] * 2),
    "all": (
        {"hold_data": True},
        {"eased", "loss", "divergence", *OF_ANCHORS},
        {"eased", "loss", "divergence"},
    ),
}


@pytest.mark.parametrize("name", LOGGED)
def test_what_is_logged(name):
    changes, training, evaluation = LOGGED[name]
    model = tiny_model()
    constraint = built(model, **({"anchors": FEW_ANCHORS} | changes))
    loss_of(constraint, moved(model), a_batch())
    assert set(constraint.metrics()) == {f"pact/{one}" for one in training}
    assert set(measured(constraint, model, a_batch())) == {f"pact/{one}" for one in evaluation}
    assert set(constraint.record.receipt.sums) == training
    assert (constraint.record.receipt.positions == 0) == (name == "anchors")


def test_by_default_the_head_reads_the_anchors_and_what_is_eased():
    model, batch, projected = tiny_model(**EAGER), padded(conversations()), []
    eased = sum(by_hand(conversations(), 16))
    assert 0 < eased < len(positions_of(batch, 16))
    constraint = built(model, anchors=FEW_ANCHORS | {"per_step": 2})
    anchors = next(term for term in constraint.terms if term.name == "anchors")
    for step in range(1, 4):
        with constraint.watch(batch):
            model(**batch)
        hook = model.lm_head.register_forward_hook(lambda m, a, out: projected.append(out.shape[0]))
        constraint.loss(batch, Step(step))
        hook.remove()
        held = sum(len(anchors.documents[one].columns) for one in anchors.schedule.chosen(step, 0, 0, 1))
        assert step == 1 or sum(projected) == held + eased  # in the first the aligned model reads the anchors
        projected.clear()


@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_anchors_alone_make_no_table_and_no_step_runs_a_reference(tmp_path, monkeypatch, build):
    model = build()
    run = RunFacts(folder=str(tmp_path / "store"))
    constraint = PactConstraint(model, TOKENIZER, settings(**ANCHORS_ALONE), run=run)
    assert constraint.reference.choice.name == "start"
    assert constraint.reference.table is None
    assert not constraint.reference.can_fill
    calls = calls_of_sources(monkeypatch)
    loss_of(constraint, model, a_batch())
    read = len(calls)
    assert (read == 0) == (
        build is tiny_model
    )  # an adapter is switched off in the first step, once for all anchors
    for _ in range(2):
        loss_of(constraint, moved(model), a_batch())
        measured(constraint, model, a_batch())
    assert len(calls) == read
    assert [one.name for one in (tmp_path / "store").iterdir()] == ["answers"]


def test_an_evaluation_that_no_term_looks_at_keeps_nothing():
    model, states = tiny_model(), []
    constraint = PactConstraint(model, TOKENIZER, settings(**ANCHORS_ALONE))
    hook = model.model.register_forward_hook(lambda *a: states.append(weakref.ref(a[-1].last_hidden_state)))
    assert measured(constraint, model, a_batch()) == {}
    hook.remove()
    assert [state() for state in states] == [None]
