"""Anchors beside a bespoke loop, against plain loops on full logits (spec/PACT.md, clause C10)."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import (
    FEW_ANCHORS,
    POSITIVE,
    TOKENIZER,
    a_batch,
    adapted,
    anchors_of,
    calls_of_sources,
    gradients,
    loss_of,
    measured,
    moved,
    settings,
    trained,
    without_response,
)
from plain import anchor_divergence, refusal_shifts
from tiny import tiny_model, tiny_vocab_size

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.config import Anchors
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.prompts import bundled
from pact_plugin.errors import ConfigError, NonFiniteError
from pact_plugin.model.head import LanguageHead
from pact_plugin.run.drift import FAR
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run
from pact_plugin.terms import anchor_schedule
from pact_plugin.terms import anchors as anchors_module
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.terms.anchor_schedule import Schedule, by_turns
from pact_plugin.terms.anchors import AnchorsTerm, require_one_backward
from pact_plugin.terms.step import Step

WEIGHT = 1.5
FIFTH = Step(5)


def config(store: Any = None, anchors: Any = True, **changes: Any) -> PactConfig:
    """Three anchors of few beside each step, unless other settings of theirs are given."""
    few = FEW_ANCHORS | {"per_step": 3, "tokens": 4}
    block = few if anchors is True else anchors and few | anchors
    return settings(store=store, **({"weight": WEIGHT, "anchors": block} | changes))


def built(model, *given: Any, **changes: Any) -> PactConstraint:
    return PactConstraint(model, TOKENIZER, config(*given, **changes))


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def step(checkpointed: bool):
        model = adapted()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        constraint = built(model.train())
        loss = loss_of(constraint, moved(moved(model)), a_batch())
        loss.backward()
        return loss.item(), gradients(model)

    (loss, ours), (expected, theirs) = step(True), step(False)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("count", "reentrant"), [(1, True), (2, False), (2, None), (2, True)])
def test_reentrant_checkpointing_on_several_ranks_is_refused(monkeypatch, count, reentrant):
    """It would leave the ranks with different gradients (rank_steps.py)."""
    monkeypatch.setattr(anchors_module, "world_size", lambda: count)
    model = tiny_model().train()
    require_one_backward(model)
    model.gradient_checkpointing_enable({} if reentrant is None else {"use_reentrant": reentrant})
    if count == 1 or reentrant is False:
        require_one_backward(model)
        return
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing_kwargs.*constraint\.ahead.*use_reentrant: false"
    ):
        require_one_backward(model)


def test_a_compiled_model():
    model, batch = tiny_model(), a_batch()
    constraint = built(compiled := torch.compile(model, backend="eager"))
    other = tiny_model()
    expected = loss_of(built(other), moved(other), batch)
    moved(model)
    assert loss_of(constraint, compiled, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("reference", "bound"), [("copy", 5e-8), ("table", 1e-4)])
def test_the_precision_of_training(tmp_path, reference, bound):
    """A copy is read in the precision of training, too, the model itself before that is known."""
    model, batch = tiny_model(), a_batch()
    constraint = built(model, tmp_path if reference == "table" else None)
    if reference == "table":
        constraint.fill([batch], progress=False)
    assert constraint.reference.choice.name == reference
    with constraint.watch(), torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    assert torch.isfinite(constraint.loss(batch))
    assert abs(constraint.metrics()["pact/anchor_divergence"]) < bound


# --- which anchors ---


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


@pytest.mark.parametrize("name", ["top_k", "benign_top_k"])
def test_a_top_k_that_leaves_no_rest_is_refused(name):
    whole = tiny_vocab_size() - len(POSITIVE)
    with pytest.raises(ConfigError, match=rf"anchors\.{name}={whole}: .*Set it to less than {whole}\."):
        PactConstraint(tiny_model(), TOKENIZER, config(anchors={name: whole}))
    constraint = PactConstraint(tiny_model(), TOKENIZER, config(anchors={name: whole - 1}))
    model = constraint._student._model
    assert loss_of(constraint, model, a_batch(), FIFTH).isfinite()


def test_nan_in_the_reference_and_in_the_model(monkeypatch):
    batch, model = a_batch(), adapted()
    constraint = built(model, easing=False)
    calls = calls_of_sources(monkeypatch)
    with torch.no_grad():
        model.base_model.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        loss_of(constraint, model, batch)
    assert len(calls) == 1
    model = tiny_model()
    constraint = built(model, easing=False)
    with constraint.watch():
        model(**batch)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)  # of the anchors' pass alone
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        constraint.loss(batch)


@pytest.mark.parametrize("changes", [{}, {"easing": False}])
def test_the_receipt_says_how_far_the_model_has_moved_there(tmp_path, changes):
    model = tiny_model()
    constraint = built(model, **changes)
    loss_of(constraint, moved(model), a_batch())
    constraint.record.write(tmp_path)
    receipt = Receipt.read(tmp_path)
    held = {"per_step": 3, "tokens": 4, "top_k": 64, "benign_top_k": 0}
    assert receipt.config["anchors"] == FEW_ANCHORS | held
    assert receipt.terms == ["anchors"] if changes else ["easing", "anchors"]
    moved_by = constraint.metrics()["pact/anchor_divergence"]
    assert f"anchor_divergence {moved_by:.4g}" in verify_run(tmp_path)


def test_a_run_whose_model_moves_far_is_warned_of_once(tmp_path, recwarn):
    def warned() -> int:
        return len([one for one in recwarn if "nats per token from the aligned one" in str(one.message)])

    model = tiny_model()
    constraint = built(model)
    loss_of(constraint, moved(moved(model)), a_batch())
    assert warned() == 0
    constraint.record.write(tmp_path)
    assert Receipt.read(tmp_path).mean("anchor_divergence") > FAR
    constraint.record.write(tmp_path)
    assert warned() == 1


@pytest.mark.parametrize("tokens", [1, 3])
def test_so_many_tokens_of_an_answer_are_held(tokens):
    term = anchors_of(built(tiny_model(), anchors={"tokens": tokens}))
    lengths = [len(document.columns) for document in term.documents]
    assert 0 < term.harmful < len(lengths)
    assert max(lengths[: term.harmful]) == max(lengths[term.harmful :]) == tokens


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
