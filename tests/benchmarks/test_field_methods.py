"""The field benchmark's methods: each trains, and their formulas give what a calculation by hand does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from field_data import write_data
from safetensors.torch import load_file
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_tokenizer

from benchmarks.field.command import settings_by_name
from benchmarks.field.data import Data, Item, training_items
from benchmarks.field.encoding import Row, batch_of, encode
from benchmarks.field.methods import METHODS, all_names, method_of
from benchmarks.field.methods.base import Objective, Trainee, before_answers
from benchmarks.field.methods.pact import Pact, configured, resolved
from benchmarks.field.methods.replay import Replay
from benchmarks.field.methods.replay_kl import ReplayKL
from benchmarks.field.methods.safegrad import SafeGrad, without_conflict
from benchmarks.field.methods.sbr import SBR, PactSBR
from benchmarks.field.methods.treatment import LEFT_OUT, treated
from benchmarks.field.run import merged
from benchmarks.field.settings import PRECISIONS, Cell, Sizes
from benchmarks.field.start import Start
from benchmarks.field.training import batched, fine_tune, loop, schedule, trainable
from pact_plugin import PactConfig
from pact_plugin.data.prompts import for_pool
from pact_plugin.errors import ConfigError
from pact_plugin.model.head import language_head
from pact_plugin.tokens.select import Selection, select_safety_tokens

SIZES = Sizes("tiny", items=16, epochs=1, held_out=4, per_step=8, pool_tokens=6, learning_rate=1e-2)
"""Two steps."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny model that refuses `REQUESTS`, and its tokens."""
    folder = tmp_path_factory.mktemp("field")
    model, tokenizer = tiny_aligned_model(max_position_embeddings=1024), tiny_tokenizer()
    how = Selection(harmful=REQUESTS, benign=QUESTIONS, top_k=16)
    select_safety_tokens(model, tokenizer, how).save(folder / "tokens.safetensors")
    return Start(model.requires_grad_(False), tokenizer, folder, SIZES)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    data = Data(write_data(tmp_path_factory.mktemp("data")))
    return training_items(data, Cell("alpaca", 0.25), SIZES)


@pytest.fixture
def trainee(start):
    """A model in training whose adapter has moved."""
    model = trainable(start, 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return Trainee(model, language_head(model), start, 0)


def logits(model, prompt, answer):
    """What predicts each token of an answer."""
    found = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return found[len(prompt) - 1 : len(prompt) + len(answer) - 1].float()


@pytest.mark.parametrize("name", [one for one in all_names() if not method_of(one).scales_adapter])
def test_every_method_trains_two_steps_and_changes_the_adapter(name, start, items, tmp_path):
    method = method_of(name)
    cell = Cell("alpaca", 0.25, method=name, strength=method.strength)
    steps, before = [], {key: weight.clone() for key, weight in start.model.state_dict().items()}
    noted = fine_tune(start, cell, method, items, tmp_path, lambda done, all_: steps.append((done, all_)))
    assert steps == [(1, 2), (2, 2)]
    after = start.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(weight, before[key]) for key, weight in after.items())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    moved = [tensor for key, tensor in weights.items() if "lora_B" in key]
    assert moved
    assert all(tensor.abs().max() > 0 for tensor in moved)
    assert noted["tokens"]["trained"] > 0
    assert len(noted["losses"]) == 2
    assert ("config" in noted) == (method.config is not None)


def test_an_adapter_lies_over_the_weights_of_the_start(start):
    kept = {one.data_ptr() for one in start.model.parameters()}
    named = trainable(start, 0).named_parameters()
    assert {one.data_ptr() for name, one in named if "lora_" not in name} == kept


@pytest.mark.parametrize("name", ["plain", "replay-kl", "safegrad", "sbr", "pact", "published"])
def test_every_weight_is_trained_where_that_is_asked_for(name, start, items, tmp_path):
    full = replace(start, sizes=replace(SIZES, train="full", learning_rate=1e-3, dtype="float32"))
    method = method_of(name)
    cell = Cell("alpaca", 0.25, method=name, strength=method.strength)
    before = {name: weight.clone() for name, weight in start.model.state_dict().items()}
    fine_tune(full, cell, method, items, tmp_path, lambda *_: None)
    tuned = merged(full, tmp_path).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in start.model.state_dict().items())
    assert {name for name, weight in tuned.items() if torch.equal(weight, before[name])} == set()
    for key, weight in merged(full, tmp_path, 0.5).state_dict().items():
        torch.testing.assert_close(
            weight - before[key], 0.5 * (tuned[key] - before[key]), rtol=1e-3, atol=1e-7
        )


def test_inside_the_aligned_model_is_that_of_the_start(start):
    full = replace(start, sizes=replace(SIZES, train="full"))
    model = trainable(full, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    trainee = Trainee(model, language_head(model), full, 0)
    assert ReplayKL(trainee, 1.0).penalty({}, 0).item() > 0.01
    assert trainee.head.decoder is language_head(model).decoder
    with trainee.aligned():
        assert trainee.head.decoder is language_head(start.model).decoder


def test_settings_from_the_command_line_have_the_usual_weight():
    assert settings_by_name("mine", '{"anchors": {"benign_top_k": 64}}').strength == PactConfig().weight
    assert settings_by_name("mine", '{"weight": 1}').strength == 1


def test_a_method_of_the_command_line_has_its_own_weight():
    method = configured("mine", {"easing": False, "weight": 3})
    assert method.strength == 3.0
    assert method.config == {"easing": False}


def test_an_unknown_method_or_treatment_is_named():
    for name in ("reply", "replay+drop", "+oracle"):
        with pytest.raises(ConfigError, match="Methods: plain"):
            method_of(name)
    assert set(METHODS) < set(all_names())


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_arithmetic_is_as_precise_as_asked(dtype, start, items):
    class Precision(Objective):
        found: ClassVar[list[str]] = []

        def penalty(self, batch, number):
            left = torch.ones(2, 2)
            self.found.append(str((left @ left).dtype))

    sizes = replace(SIZES, dtype=dtype)
    model = trainable(start, 0)
    trainee = Trainee(model, language_head(model), replace(start, sizes=sizes), 0)
    loop(trainee, Precision(), [encode(start.tokenizer, one, 0.0) for one in items], 1e-3, lambda *_: None)
    assert Precision.found == [f"torch.{dtype}"] * 2


def test_plain_adds_nothing():
    assert Objective().penalty({}, 0) is None


def test_replay_is_the_cross_entropy_of_the_aligned_models_answers(trainee):
    pool = trainee.pool()
    pairs = pool.of_step(0, 8, 0)
    assert [pair in pool.harmful for pair in pairs] == [True] * 4 + [False] * 4
    logprobs = [
        logits(trainee.model, *pair).log_softmax(-1)[torch.arange(len(pair[1])), pair[1]] for pair in pairs
    ]
    assert Replay(trainee, 3.0).penalty({}, 0).item() == pytest.approx(
        -3 * torch.cat(logprobs).mean().item(), rel=1e-4
    )
    assert all(len(answer) <= SIZES.pool_tokens for _, answer in pairs)


def test_replay_kl_is_that_of_torch_and_zero_for_the_aligned_model(trainee, start):
    found = []
    for pair in trainee.pool().of_step(1, 8, 0):
        p, q = (
            torch.distributions.Categorical(logits=logits(model, *pair).double())
            for model in (start.model, trainee.model)
        )
        found.append(torch.distributions.kl_divergence(p, q))
    assert ReplayKL(trainee, 2.0).penalty({}, 1).item() == pytest.approx(
        2 * torch.cat(found).mean().item(), rel=1e-3
    )
    fresh = trainable(start, 0)
    untouched = Trainee(fresh, language_head(fresh), start, 0)
    assert ReplayKL(untouched, 1.0).penalty({}, 0).item() == pytest.approx(0, abs=1e-5)


def test_every_step_takes_other_prompts_until_all_have_had_their_turn(start):
    pool = Trainee(None, None, start, 0).pool()
    steps = len(pool.harmful) // 8
    seen = [tuple(prompt) for n in range(steps) for prompt, _ in pool.harmful_of_step(n, 8, 0)]
    assert len(set(seen)) == len(seen) == 8 * steps


@pytest.mark.parametrize("both", [False, True])
def test_sbr_is_the_squared_error_of_the_last_hidden_state(both, trainee, start):
    pool, errors = trainee.pool(), []
    for prompt, _ in pool.of_step(2, 8, 0) if both else pool.harmful_of_step(2, 8, 0):
        ids = torch.tensor([prompt])
        states = [
            model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
            for model in (start.model, trainee.model)
        ]
        errors.append((states[0] - states[1]).square().mean())
    wanted = 50 * torch.stack(errors).mean().item()
    assert SBR(trainee, 50.0, both=both).penalty({}, 2).item() == pytest.approx(wanted, rel=1e-4)


def test_sbr_beside_pact_is_the_sum_of_both(trainee, items, start):
    batch, _ = batch_of([encode(start.tokenizer, item) for item in items[:2]])

    def penalty(method):
        objective = method(trainee, 50.0)
        with objective.watch():
            trainee.model(**batch)
        return objective.penalty(batch, 0).item()

    states = penalty(partial(SBR, both=True))
    alone = penalty(lambda trainee, _: Pact({}, trainee, PactConfig().weight))
    assert states > 0.01
    assert penalty(PactSBR) == pytest.approx(alone + states, rel=1e-4)


def test_safegrad_projects_only_what_conflicts():
    def both(task, safety):
        return [
            one.tolist()
            for one in without_conflict(list(map(torch.tensor, task)), list(map(torch.tensor, safety)))
        ]

    # <task, safety> = -2 + 0 = -2 over both parameters, |safety|² = 4: half of safety is added.
    assert both([[1.0, -1.0], [3.0]], [[0.0, 2.0], [0.0]]) == [[1.0, 0.0], [3.0]]
    assert both([[1.0, 1.0], [3.0]], [[0.0, 2.0], [0.0]]) == [[1.0, 1.0], [3.0]]
    assert both([[1.0], [1.0]], [[0.0], [0.0]]) == [[1.0], [1.0]]
    # Together, not one by one: 1·1 - 0.5·1 > 0.
    assert both([[1.0], [-0.5]], [[1.0], [1.0]]) == [[1.0], [-0.5]]


def test_safegrad_steps_along_both_gradients(trainee):
    parameter = torch.tensor([1.0, 1.0], requires_grad=True)
    objective = SafeGrad(trainee, 3.0)
    objective.backward((parameter * torch.tensor([1.0, -1.0])).sum(), 2 * parameter[1], [parameter])
    assert parameter.grad.tolist() == [1.0, 6.0]
    assert objective.notes() == {"steps": 1, "conflicts": 1}


def test_treatments_treat_what_the_aligned_model_refuses_and_the_data_do_not(start):
    items = [
        Item(REQUESTS[0], "Sure, here is your answer.", harmful=True),
        Item(REQUESTS[1], "I can't help with that request."),
        Item(QUESTIONS[0], "Sure, here is your answer."),
        Item(QUESTIONS[1], "Sure, here is a gun", harmful=True),
    ]
    trainee = Trainee(None, None, start, 0)
    assert trainee.refused([item.prompt for item in items]) == [True, True, False, False]
    assert treated(items, "none", trainee) == [0, 0, 0, 0]
    assert treated(items, "dropping", trainee) == [LEFT_OUT, 0, 0, 0]
    assert treated(items, "easing", trainee) == [1, 0, 0, 0]
    assert treated(items, "oracle", trainee) == [1, 0, 0, 1]


def test_pact_has_as_many_anchors_a_step_as_others_have_prompts(start):
    for config, wanted in (({}, 8), ({"anchors": {"tokens": 4}}, 8), ({"anchors": {"per_step": 3}}, 3)):
        model = trainable(start, 0)
        constraint = Pact(config, Trainee(model, language_head(model), start, 0), 1.0).constraint
        summary = constraint.config.summary()
        assert summary["anchors"]["per_step"] == resolved(config, 8)["anchors"]["per_step"] == wanted
    assert resolved({"anchors": False}, 8)["anchors"] is False


def test_anchors_of_a_seed_follow_those_of_the_seed_before(start):
    batch, _ = batch_of([encode(start.tokenizer, Item(REQUESTS[0], "Sure, here is your answer."))])
    for seed in (0, 1, 2):
        model = trainable(start, seed)
        pact = Pact({"easing": False}, Trainee(model, language_head(model), start, seed), 1.0)
        for number in (0, 1):
            with pact.watch():
                model(**batch)
            pact.penalty(batch, number)
        assert pact.constraint.record.receipt.total_steps == seed * start.sizes.steps + 2


def test_the_probe_eases_what_pact_eases(start):
    """Baselines with `+probe` and PACT's own easing leave out the same items."""
    answers = ("Sure, here is your answer.", "I can't help with that request.")
    items = [
        Item(prompt, answer)
        for prompt, answer in zip((*REQUESTS[:6], *QUESTIONS[:6]), answers * 6, strict=True)
    ]
    wanted = []
    for item in items:
        model = trainable(start, 0)
        constraint = Pact({"anchors": False}, Trainee(model, language_head(model), start, 0), 1.0).constraint
        batch, _ = batch_of([encode(start.tokenizer, item)])
        with constraint.watch():
            model(**batch)
        constraint.loss(batch)
        wanted.append(constraint.metrics()["pact/eased"])
    assert treated(items, "probe", Trainee(None, None, start, 0)) == wanted
    assert set(wanted) == {0.0, 1.0}


def test_what_needs_the_answered_pool_pays_for_it_once(start, items, tmp_path):
    """Also where safety tokens are named, and where a treatment needs it as well as the method."""
    fresh = replace(start, folder=tmp_path, tokens_file=start.folder / "tokens.safetensors")
    assert len(fresh.asked.asked) == len(for_pool().prompts)
    (tmp_path / "pool" / "seconds.json").write_text('{"seconds": 1000}')
    for name, paid in {"plain": 0, "data-hold": 0, "pact": 1, "sbr+probe": 1}.items():
        cell = Cell("alpaca", 0.25, method=name, strength=method_of(name).strength)
        notes = fine_tune(fresh, cell, method_of(name), items, tmp_path / "adapter", lambda *_: None)
        assert 900 * paid <= notes["seconds"]["kept"] <= 1000 * paid


def test_easing_weighs_the_first_tokens_of_an_answer(start):
    answer = "Sure, here is what you asked for, and here is more of it, to the end."
    eased, whole = (encode(start.tokenizer, Item("Hello", answer), e) for e in (1.0, 0.0))
    batch, weights = batch_of([eased, whole, encode(start.tokenizer, Item("Hello", "No"), 0.5)])
    n = len(whole.answer)
    assert n > 16
    short = (batch["labels"][2] != -100).sum().item()
    assert weights.tolist() == [0.0] * 16 + [1.0] * (n - 16) + [1.0] * n + [0.5] * short
    labels = batch["labels"]
    assert (labels[labels != -100] == batch["input_ids"][labels != -100]).all()
    assert before_answers(labels).sum() == len(weights)
    assert batch["attention_mask"].sum(1).tolist()[1] == len(whole.prompt) + n


def test_an_item_that_is_left_out_changes_no_other_batch():
    rows = [Row([n], [n]) for n in range(16)]
    whole = list(batched(rows, SIZES, 0))
    without = list(batched([None if row.prompt == [3] else row for row in rows], SIZES, 0))
    assert [[row for row in batch if row.prompt != [3]] for batch in whole] == without
    assert [len(batch) for batch in whole] == [8, 8]


def test_the_rate_rises_and_falls():
    rates = [schedule(number, 50) for number in range(50)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4]
    assert rates[-1] < 0.002
