"""Anchors beside a bespoke loop, against plain loops on full logits (spec/PACT.md, clause C10)."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from plain import anchor_divergence
from sft import lora
from test_constraint import POSITIVE, TOKENIZER, TOKENS, a_batch, moved
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.data.generation import user_prompt
from pact_plugin.data.prompts import ANCHORS
from pact_plugin.data.selection_prompts import benign_prompts, harmful_prompts
from pact_plugin.errors import ConfigError, NonFiniteError
from pact_plugin.reference.passes import Passes
from pact_plugin.run.drift import LOOSE
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run
from pact_plugin.terms import anchors as anchors_module
from pact_plugin.terms.anchor_prompts import anchor_prompts, turns
from pact_plugin.terms.anchors import Anchors

WEIGHT = 1.5


def config(anchors: int = 3, **changes) -> PactConfig:
    return PactConfig(
        **{"safety_tokens": TOKENS, "weight": WEIGHT, "anchors": anchors, "hold": "all"} | changes
    )


def adapted():
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), lora())


def trained():
    model = adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    return model


def loss_of(constraint, model, batch, **keywords):
    with constraint.watch(batch):
        model(**batch)
    return constraint.loss(batch, **keywords)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


REFERENCES = {
    "frozen_copy": tiny_model,
    "stored": tiny_model,
    "adapter_off": adapted,
    "trained adapter": trained,
    "another model": tiny_model,
}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("reference", REFERENCES)
def test_p26_the_gradient_is_the_tasks_plus_that_of_a_plain_loop(tmp_path, monkeypatch, reference, flat):
    monkeypatch.setattr(Passes, "_flat", flat)
    build, batch = REFERENCES[reference], a_batch()
    aligned = tiny_model(seed=4) if reference == "another model" else build()
    asked: dict = {"store": tmp_path} if reference == "stored" else {}
    other = {"reference_model": tiny_model(seed=4)} if reference == "another model" else {}
    model, plain = build(), build()
    constraint = PactConstraint(model, TOKENIZER, config(**asked, chunk_size=7), **other)
    without = PactConstraint(plain, TOKENIZER, config(anchors=0, **asked), **other)
    for one in (constraint, without) if reference == "stored" else ():
        one.fill([batch], progress=False)
    moved(model), moved(plain)

    loss = loss_of(constraint, model, batch, step=5)
    loss.backward()
    chosen = [constraint.anchors.documents[i] for i in constraint.anchors.chosen(5, 0, 0, 1)]
    assert len({document.tokens.tobytes() for document in chosen}) == 3
    term = anchor_divergence(plain, aligned, chosen, torch.tensor(POSITIVE))
    expected = loss_of(without, plain, batch, step=5) + WEIGHT * term
    expected.backward()
    assert term.item() > 1e-3
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    theirs = gradients(plain)
    assert theirs
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-5)
    assert constraint.metrics()["pact/anchor_divergence"] == pytest.approx(term.item(), abs=1e-5)


@pytest.mark.parametrize("easing", [True, False])
def test_p28_anchors_alone_leave_the_data_free(easing):
    """The gradient is that of all that is held, without that of the data."""
    found, measured = {}, {}
    for name, settings in (
        ("all", {}),
        ("data", {"anchors": 0, "easing": False}),
        ("anchors", {"hold": "anchors"}),
    ):
        model = adapted()
        constraint = PactConstraint(model, TOKENIZER, config(**{"easing": easing, **settings}))
        moved(model)
        loss_of(constraint, model, a_batch(), step=3).backward()
        found[name], measured[name] = gradients(model), constraint.metrics()
    assert max(float(gradient.abs().max()) for gradient in found["anchors"].values()) > 1e-4
    for name, gradient in found["anchors"].items():
        torch.testing.assert_close(gradient, found["all"][name] - found["data"][name], atol=1e-5, rtol=1e-4)
    alone, whole = measured["anchors"], measured["all"]
    assert alone["pact/divergence"] == pytest.approx(whole["pact/divergence"])  # still measured
    assert alone["pact/divergence"] > 1e-4
    assert alone["pact/loss"] == pytest.approx(WEIGHT * alone["pact/anchor_divergence"])
    assert whole["pact/loss"] > 1.1 * alone["pact/loss"]


@pytest.mark.parametrize("settings", [{"anchors": 0}, {"objective": "published"}])
def test_anchors_alone_need_anchors(settings):
    with pytest.raises(ConfigError, match="hold='anchors'"):
        PactConfig(safety_tokens=TOKENS, hold="anchors", **settings)


def test_a_run_that_cannot_have_anchors_does_not_begin_with_nothing_held():
    config = PactConfig(safety_tokens=TOKENS, hold="anchors")
    with pytest.raises(ConfigError, match="impossible"), anchors_module.tolerated(config):
        raise ConfigError("impossible", key="tp_size", remedy="None.")


def test_a_run_that_turns_out_to_have_no_anchors_holds_the_data():
    def impossible() -> None:
        raise ConfigError("impossible", key="tp_size", remedy="None.")

    found = {}
    for anchors in (None, 0):
        model = tiny_model()
        constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS, anchors=anchors))
        if anchors is None:
            with pytest.warns(UserWarning, match=r"the data alone is held.*impossible"):
                constraint.require_of_anchors(impossible)
        moved(model)
        loss = loss_of(constraint, model, a_batch())
        with constraint.watch(), torch.no_grad():
            model(**a_batch())
        constraint.observe(a_batch())
        found[anchors] = [loss.item(), constraint.metrics(), constraint.metrics("eval")]
    assert found[None] == found[0]
    assert found[0][1]["pact/loss"] > 1e-3
    assert found[0][2]["pact/loss"] > 1e-3


@pytest.mark.parametrize("build", [tiny_model, adapted, trained])
def test_p24_nothing_at_the_reference(build):
    model = build().train()
    constraint = PactConstraint(model, TOKENIZER, config(easing=False))
    loss_of(constraint, model, a_batch()).backward()
    assert constraint.metrics()["pact/anchor_divergence"] == pytest.approx(0, abs=1e-7)
    assert max(float(g.abs().max()) for g in gradients(model).values()) < 1e-5
    moved(model)
    loss_of(constraint, model, a_batch()).backward()
    assert constraint.metrics()["pact/anchor_divergence"] > 1e-5


def test_p25_splitting_a_batch_changes_nothing_with_the_same_anchors(monkeypatch):
    monkeypatch.setattr(Anchors, "chosen", lambda self, *turn: [3, 9, 11])
    batch = a_batch(rows=4)
    count = int((batch["labels"][:, 1:] != -100).sum())

    def step(*parts: slice):
        model = tiny_model()
        constraint = PactConstraint(model, TOKENIZER, config())
        moved(model)
        total = 0.0
        for rows in parts:
            part = {key: value[rows] for key, value in batch.items()}
            loss = loss_of(constraint, model, part, num_items_in_batch=count, step=1)
            loss.backward()
            total += loss.item()
        return total, gradients(model), constraint.metrics()

    whole, split = step(slice(0, 4)), step(slice(0, 1), slice(1, 4))
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(split[1][name], gradient, atol=1e-5, rtol=1e-4)
    for name in ("pact/loss", "pact/anchor_divergence"):
        assert split[2][name] == pytest.approx(whole[2][name], rel=1e-4)
    anchored = WEIGHT * whole[2]["pact/anchor_divergence"]
    tasks = WEIGHT * whole[2]["pact/divergence"] * whole[2]["pact/positions"] / count
    assert whole[2]["pact/loss"] == pytest.approx(anchored + tasks, rel=1e-5)
    assert anchored > 1e-3


def test_a_micro_batch_without_a_response_runs_the_pass_and_adds_nothing():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, config())
    loss_of(constraint, moved(model), batch).backward()
    model.zero_grad()
    empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
    calls = []
    with constraint.watch():
        model(**batch)
    model.model.register_forward_hook(lambda module, *_: calls.append(torch.is_grad_enabled()))
    loss = constraint.loss(empty, num_items_in_batch=7)
    assert calls == [False, True]  # the reference, the anchors
    assert loss.item() == 0.0
    loss.backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_at_weight_0_and_in_evaluation_no_anchor_is_read():
    model, batch = tiny_model(), a_batch()
    measured = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS, weight=0, anchors=3))
    assert measured.anchors is None
    assert loss_of(measured, moved(model), batch).item() == 0.0
    assert "pact/anchor_divergence" not in measured.metrics()

    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config())
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    with constraint.watch(), torch.no_grad():
        model(**batch)
    constraint.observe(batch)
    assert len(calls) == 2  # the model and the reference
    assert "pact/anchor_divergence" not in constraint.metrics("eval")


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def step(checkpointed: bool):
        model = adapted()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        constraint = PactConstraint(model.train(), TOKENIZER, config())
        loss = loss_of(constraint, moved(moved(model)), a_batch())
        loss.backward()
        return loss.item(), gradients(model)

    (loss, ours), (expected, theirs) = step(True), step(False)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_compiled_model():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(compiled := torch.compile(model, backend="eager"), TOKENIZER, config())
    other = tiny_model()
    expected = loss_of(PactConstraint(other, TOKENIZER, config()), moved(other), batch)
    moved(model)
    assert loss_of(constraint, compiled, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("reference", ["frozen_copy", "stored"])
def test_the_precision_of_training(tmp_path, reference):
    model, batch = tiny_model(), a_batch()
    asked = {"reference": reference, "store": tmp_path if reference == "stored" else None}
    constraint = PactConstraint(model, TOKENIZER, config(**asked))
    if reference == "stored":
        constraint.fill([batch], progress=False)
    with constraint.watch(), torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    loss = constraint.loss(batch)
    assert torch.isfinite(loss)
    # A copy is read in the precision of training too, the model itself before it is known.
    bound = 5e-8 if reference == "frozen_copy" else 1e-5
    assert abs(constraint.metrics()["pact/anchor_divergence"]) < bound


# --- which anchors ---


@pytest.fixture
def pool() -> Anchors:
    return PactConstraint(tiny_model(), TOKENIZER, config(anchors=4)).anchors


@pytest.mark.parametrize("ratio", [1, 3])
def test_the_same_part_of_each_kind_in_every_step(ratio):
    settings = config(anchors=4, anchor_ratio=ratio)
    pool = PactConstraint(tiny_model(), TOKENIZER, settings).anchors
    kinds = anchor_prompts("both")
    of = {tuple(user_prompt(TOKENIZER, text)): kind for kind, texts in kinds.items() for text in texts}
    found = [of[tuple(d.tokens[: d.columns[0]].tolist())] for d in pool.documents]
    each = {1: {"harmful": 2, "benign": 2}, 3: {"harmful": 1, "benign": 3}}[ratio]
    for step in range(1, 40):
        assert Counter(found[i] for i in pool.chosen(step, step % 3, 0, 1)) == each
    pool.per_step = 1
    assert [found[pool.chosen(step, 0, 0, 1)[0]] for step in range(1, 5)] == [
        "harmful",
        *["benign"] * ratio,
        "harmful",
        "benign",
    ][:4]
    bundled = {"harmful": set(harmful_prompts()), "benign": set(benign_prompts())}
    for kind, texts in kinds.items():
        assert len(set(texts)) == len(texts) == ANCHORS
        of_every_category = [index for index, text in enumerate(texts) if text in bundled[kind]]
        assert len(of_every_category) == ANCHORS // 4
        assert all(
            sum(start <= i < start + 128 for i in of_every_category) >= 8 for start in range(0, 256, 128)
        )


def test_each_takes_its_turn_and_none_twice_in_a_step(pool, monkeypatch):
    size = len(pool.documents) // 8 * 8
    monkeypatch.setattr(pool, "turns", list(range(size)))
    monkeypatch.setattr(anchors_module, "ranks", lambda: 2)
    pool.per_step = 8
    steps = range(1, size // 8 + 1)
    for number in range(3):
        seen = [i for step in steps for rank in (0, 1) for i in pool.chosen(step, number, rank, 1)]
        assert sorted(seen) == list(range(size))
    together = [i for number in range(4) for rank in (0, 1) for i in pool.chosen(1, number, rank, 1)]
    assert len(set(together)) == len(together) == 32


@pytest.mark.parametrize(
    ("ranks", "micro_batches", "each"), [(1, 1, 8), (1, 4, 2), (2, 4, 1), (1, 3, 3), (2, 8, 1), (1, 20, 1)]
)
def test_a_steps_anchors_are_spread(pool, monkeypatch, ranks, micro_batches, each):
    size, everyone = len(pool.turns), set(range(len(pool.documents)))
    monkeypatch.setattr(anchors_module, "ranks", lambda: ranks)
    pool.per_step = 8

    def step(number: int) -> list[int]:
        parts = [
            pool.chosen(number, micro_batch, rank, micro_batches)
            for rank in range(ranks)
            for micro_batch in range(micro_batches)
        ]
        assert {len(part) for part in parts} == {each}
        return list(chain.from_iterable(parts))

    together = each * ranks * micro_batches
    assert step(1) == pool.turns[:together]
    assert step(2) == [pool.turns[i % size] for i in range(together, 2 * together)]
    assert set(chain.from_iterable(map(step, range(1, size + 1)))) == everyone


@given(harmful=st.integers(0, 12), benign=st.integers(0, 40), ratio=st.integers(1, 6))
def test_every_anchor_has_its_turn_and_the_kinds_keep_their_ratio(harmful, benign, ratio):
    found = turns(harmful, benign, ratio)
    assert set(found) == set(range(harmful + benign))
    if not harmful or not benign:
        assert found == list(range(harmful + benign))
        return
    rounds = [found[start : start + 1 + ratio] for start in range(0, len(found), 1 + ratio)]
    assert all(first < harmful <= min(others) and len(others) == ratio for first, *others in rounds)
    taken = Counter(found)
    for part in (range(harmful), range(harmful, harmful + benign)):  # none twice more often than another
        assert max(taken[number] for number in part) - min(taken[number] for number in part) <= 1


def test_a_step_has_a_micro_batch():
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config())
    with pytest.raises(ConfigError, match="micro_batches=0"):
        loss_of(constraint, model, a_batch(), micro_batches=0)


def test_micro_batches_are_counted_within_a_step(pool, monkeypatch):
    asked = []
    monkeypatch.setattr(pool, "chosen", lambda *turn: asked.append(turn) or [0])
    for step in (1, 1, 1, 2, 2, 7):
        pool.divergence(step, 3, nullcontext())
    assert asked == [(1, 0, 0, 3), (1, 1, 0, 3), (1, 2, 0, 3), (2, 0, 0, 3), (2, 1, 0, 3), (7, 0, 0, 3)]


def test_the_answers_are_the_references(monkeypatch):
    aligned = tiny_model(seed=4)
    ours = PactConstraint(tiny_model(), TOKENIZER, config(), reference_model=aligned).anchors
    own = PactConstraint(tiny_model(seed=4), TOKENIZER, config()).anchors
    assert [d.tokens.tolist() for d in ours.documents] == [d.tokens.tolist() for d in own.documents]
    other = PactConstraint(tiny_model(), TOKENIZER, config()).anchors
    assert [d.tokens.tolist() for d in other.documents] != [d.tokens.tolist() for d in own.documents]
    document = own.documents[0]
    answer = aligned.generate(
        torch.from_numpy(document.tokens[: document.columns[0]])[None], max_new_tokens=16, do_sample=False
    )[0]
    assert answer[: len(document.tokens)].tolist() == document.tokens.tolist()
    assert not set(document.tokens[document.columns].tolist()) & set(TOKENIZER.all_special_ids)


def test_building_leaves_model_and_random_state_as_they_were():
    model = tiny_model(attention_dropout=0.3).train()
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    constraint = PactConstraint(model, TOKENIZER, config())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(isinstance(d.tokens, np.ndarray) for d in constraint.anchors.documents)


def test_nan_in_the_reference_and_in_the_model():
    batch, model = a_batch(), tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config(), reference_model=(aligned := tiny_model()))
    with torch.no_grad():
        aligned.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        constraint.anchors.divergence(1, 1, nullcontext())
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config())
    with constraint.watch():
        model(**batch)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)  # of the anchors' pass alone
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        constraint.loss(batch)


@pytest.mark.parametrize(
    ("settings", "words", "positions"),
    [
        ({}, " 3 anchors,", " response positions, "),
        ({"hold": None}, " 3 anchors alone,", " response positions measured, "),
    ],
)
def test_the_receipt_says_how_many(tmp_path, settings, words, positions):
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config(**settings))
    loss_of(constraint, model, a_batch())
    constraint.flush()
    constraint.write_receipt(tmp_path)
    receipt = Receipt.read(tmp_path)
    assert (receipt.config["anchors"], receipt.config["anchor_prompts"]) == (3, "both")
    assert receipt.anchor_prompts == len(constraint.anchors.documents) > 2 * ANCHORS - 20
    assert words in verify_run(tmp_path)
    assert positions in verify_run(tmp_path)


def test_a_run_that_does_not_hold_is_warned_of_once(tmp_path, recwarn):
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config())
    loss_of(constraint, moved(moved(model)), a_batch())
    constraint.write_receipt(tmp_path)  # nothing of it has come to the host
    assert not [w for w in recwarn if "a token from the aligned one" in str(w.message)]
    constraint.flush()
    assert constraint.receipt.mean_anchor_divergence > LOOSE
    constraint.write_receipt(tmp_path)
    constraint.write_receipt(tmp_path)
    assert len([w for w in recwarn if "a token from the aligned one" in str(w.message)]) == 1


@pytest.mark.parametrize("tokens", [1, 3])
def test_so_many_tokens_of_an_answer_are_held(tokens):
    documents = PactConstraint(tiny_model(), TOKENIZER, config(anchor_tokens=tokens)).anchors.documents
    assert max(len(document.columns) for document in documents) == tokens
