"""The gradient of anchors beside a bespoke loop, against plain loops on full logits (spec/PACT.md, clause C10)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anchors import FIFTH, WEIGHT, built, config
from loop import (
    POSITIVE,
    TOKENIZER,
    a_batch,
    adapted,
    anchors_of,
    gradients,
    loss_of,
    measured,
    moved,
    settings,
    trained,
    without_response,
)
from plain import anchor_divergence, refusal_shifts
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.model.head import LanguageHead
from pact_plugin.terms import anchors as anchors_module
from pact_plugin.terms.anchor_schedule import Schedule
from pact_plugin.terms.step import Step

REFERENCES = {
    # name: how the model is built, and where its columns come from
    "copy": (tiny_model, "copy"),
    "table": (tiny_model, "table"),
    "adapter off": (adapted, "adapter_off"),
    "adapter off, table": (adapted, "table"),
    "trained adapter": (trained, "copy"),
    "another model": (tiny_model, "model"),
    "start": (tiny_model, "start"),
}


@pytest.mark.parametrize(
    ("name", "flat"),
    [*((name, False) for name in REFERENCES), ("copy", True), ("adapter off, table", True)],
)
def test_p26_the_gradient_is_the_tasks_plus_that_of_a_plain_loop(tmp_path, monkeypatch, name, flat):
    monkeypatch.setattr(LanguageHead, "keeps_documents_apart", flat)
    build, reference = REFERENCES[name]
    batch, other = a_batch(), {}
    aligned = build()
    if name == "another model":
        aligned, other = tiny_model(seed=4), {"reference_model": tiny_model(seed=4)}
    model, plain = build(), build()
    asked = {"store": tmp_path} if reference == "table" else {}
    asked |= {"easing": False} if reference == "start" else {"hold_data": True}
    chunks = {"advanced": {"chunk_size": 7}}
    constraint = PactConstraint(model, TOKENIZER, config(**asked, **chunks), **other)
    assert constraint.reference.choice.name == reference
    if reference == "table":
        constraint.fill([batch], progress=False)
    moved(model), moved(plain)

    loss = loss_of(constraint, model, batch, FIFTH)
    loss.backward()
    pool = anchors_of(constraint)
    chosen = pool.schedule.chosen(5, 0, 0, 1)
    assert len({pool.documents[i].tokens.tobytes() for i in chosen}) == 3
    term = anchor_divergence(plain, aligned, pool, chosen, torch.tensor(POSITIVE))
    expected = WEIGHT * term
    if reference != "start":
        # What looks at the data reads the aligned model itself, so that it cannot depend on this one.
        without = PactConstraint(build(), TOKENIZER, config(anchors=False, **asked), **other)
        if reference == "table":
            without.fill([batch], progress=False)
        moved(without.model)
        task = loss_of(without, without.model, batch, FIFTH)
        task.backward()
        expected = expected + task.detach()
    (WEIGHT * term).backward()
    assert term.item() > 1e-3
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    theirs = gradients(plain)
    of_task = gradients(without.model) if reference != "start" else dict.fromkeys(theirs, 0.0)
    assert theirs
    for parameter, gradient in gradients(model).items():
        wanted = theirs[parameter] + of_task[parameter]
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
    shifts = refusal_shifts(plain, aligned, pool, chosen, torch.tensor(POSITIVE))
    metrics = constraint.metrics()
    assert metrics["pact/anchor_divergence"] == pytest.approx(term.item(), abs=1e-5)
    assert metrics["pact/refusal_shift"] == pytest.approx(sum(shifts) / len(shifts), abs=1e-4)
    assert 0 < len(shifts) < len(chosen)
    assert abs(metrics["pact/refusal_shift"]) > 1e-2


def test_p26_an_anchor_weighs_the_same_however_few_of_its_tokens_are_held(monkeypatch):
    """The mean is taken by anchor: it is half of each where one of each kind is held."""
    anchors, whole = {"per_step": 2, "tokens": 4}, anchors_module.anchors_from

    def shortened(*given: Any) -> Any:
        kept = whole(*given)
        return kept | {"benign": [(prompt, answer[:1]) for prompt, answer in kept["benign"]]}

    def step(*chosen: int) -> float:
        model = tiny_model()
        constraint = built(model, anchors=anchors)
        anchors_of(constraint).schedule = Schedule(list(chosen), per_step=len(chosen))
        moved(model)
        return constraint.ahead(a_batch(), Step(1)).item()

    monkeypatch.setattr(anchors_module, "anchors_from", shortened)
    harmful = anchors_of(built(tiny_model(), anchors=anchors)).harmful
    alone, both = (step(0), step(harmful)), step(0, harmful)
    assert abs(alone[0] - alone[1]) > 1e-4
    assert both == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("easing", [True, False])
def test_p28_anchors_alone_leave_the_data_free(easing):
    """By default the gradient is that of all that is held, without that of the data; with easing and without."""
    found, logged = {}, {}
    for name, changes in (
        ("all", {"easing": easing, "hold_data": True}),
        ("data", {"anchors": False, "easing": False, "hold_data": True}),
        ("anchors", {"easing": easing}),
    ):
        model = adapted()
        constraint = built(model, **changes)
        loss_of(constraint, moved(model), a_batch(), Step(3)).backward()
        found[name], logged[name] = gradients(model), constraint.metrics()
    assert max(float(gradient.abs().max()) for gradient in found["anchors"].values()) > 1e-4
    for name, gradient in found["anchors"].items():
        torch.testing.assert_close(gradient, found["all"][name] - found["data"][name], atol=1e-5, rtol=1e-4)
    alone, whole = logged["anchors"], logged["all"]
    assert "pact/divergence" not in alone
    assert ("pact/eased" in alone) == easing
    assert alone["pact/loss"] == pytest.approx(WEIGHT * alone["pact/anchor_divergence"])
    assert whole["pact/loss"] == pytest.approx(alone["pact/loss"] + logged["data"]["pact/loss"])
    assert whole["pact/loss"] > 1.001 * alone["pact/loss"]


@pytest.mark.parametrize("build", [tiny_model, adapted, trained])
def test_p24_nothing_at_the_reference(build):
    model = build().train()
    constraint = built(model, easing=False, hold_data=True)
    loss_of(constraint, model, a_batch()).backward()
    assert constraint.metrics()["pact/anchor_divergence"] == pytest.approx(0, abs=1e-7)
    assert max(float(g.abs().max()) for g in gradients(model).values()) < 1e-5
    loss_of(constraint, moved(model), a_batch()).backward()
    assert constraint.metrics()["pact/anchor_divergence"] > 1e-5


def test_p25_splitting_a_batch_changes_nothing_with_the_same_anchors(monkeypatch):
    monkeypatch.setattr(Schedule, "chosen", lambda self, *turn: [3, 9, 11])
    batch = a_batch(rows=4)
    count = int((batch["labels"][:, 1:] != -100).sum())

    def step(*parts: slice):
        model = tiny_model()
        constraint = built(model, hold_data=True)
        moved(model)
        total = 0.0
        for rows in parts:
            part = {key: value[rows] for key, value in batch.items()}
            loss = loss_of(constraint, model, part, Step(1, len(parts), count))
            loss.backward()
            total += loss.item()
        constraint.record.flush()
        return total, gradients(model), constraint.metrics(), constraint.record.receipt

    whole, split = step(slice(0, 4)), step(slice(0, 1), slice(1, 4))
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(split[1][name], gradient, atol=1e-5, rtol=1e-4)
    assert split[2] == pytest.approx(whole[2], rel=1e-4)
    anchored = WEIGHT * whole[2]["pact/anchor_divergence"]
    tasks = WEIGHT * whole[2]["pact/divergence"] * whole[3].positions / count
    assert whole[2]["pact/loss"] == pytest.approx(anchored + tasks, rel=1e-5)
    assert anchored > 1e-3


def test_a_micro_batch_without_a_response_runs_the_pass_and_adds_nothing():
    model, batch = tiny_model(), a_batch()
    constraint = built(model, easing=False)
    loss_of(constraint, moved(model), batch).backward()
    model.zero_grad()
    calls = []
    with constraint.watch():
        model(**batch)
    model.model.register_forward_hook(lambda module, *_: calls.append(torch.is_grad_enabled()))
    loss = constraint.loss(without_response(batch), Step(2, tokens=7))
    assert calls == [True]  # the anchors
    assert loss.item() == 0.0
    loss.backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_at_weight_0_and_in_evaluation_no_anchor_is_read():
    model, batch = tiny_model(), a_batch()
    without = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=settings().safety_tokens, weight=0))
    assert [term.name for term in without.terms] == ["easing"]
    assert loss_of(without, moved(model), batch).item() == 0.0
    assert "pact/anchor_divergence" not in without.metrics()

    model = tiny_model()
    constraint = built(model)
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    assert set(measured(constraint, model, batch)) == {"pact/eased"}
    assert len(calls) == 2  # the model and the reference
