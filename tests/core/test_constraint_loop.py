"""PactConstraint in a bespoke loop: its gradients, its steps, and the precision of training."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from loop import (
    FEW_ANCHORS,
    TERMS,
    TOKENIZER,
    TOKENS,
    a_batch,
    adapted,
    constrained,
    gradients,
    loss_of,
    measured,
    moved,
    settings,
    without_response,
)
from tiny import tiny_model, with_float32_norms

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.errors import ConfigError
from pact_plugin.terms.step import Step


def test_gradients_reach_the_model_in_training_alone():
    model, aligned = tiny_model(), tiny_model()
    _, loss = constrained(model, settings(hold_data=True), a_batch(), reference_model=aligned)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad is None for p in aligned.parameters())


def test_thirty_steps_of_the_documented_loop_keep_the_safety_tokens_where_plain_training_loses_them():
    def train(**changes):
        model, batch = tiny_model(), a_batch(rows=8)
        constraint = PactConstraint(model, TOKENIZER, settings(easing=False, hold_data=True, **changes))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(30):
            with constraint.watch():
                output = model(**batch)
            loss = output.loss + constraint.loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return output.loss.item(), measured(constraint, model, batch)["pact/divergence"]

    plain_loss, plain_divergence = train(weight=0)
    pact_loss, pact_divergence = train(weight=5)
    assert pact_divergence < 0.3 * plain_divergence
    assert pact_loss < plain_loss + 1.0


@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_building_leaves_the_model_and_the_random_state_as_they_were(build):
    model = build().train()
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(gradient is None for gradient in gradients(model).values())


# --- steps and micro-batches ---


def test_splitting_a_batch_changes_no_gradient():
    batch = a_batch(rows=4)
    whole, split = tiny_model(), tiny_model()
    config = settings(weight=2, hold_data=True)
    constrained(whole, config, batch)[1].backward()
    constraint = PactConstraint(split, TOKENIZER, config)
    moved(split)
    count = (batch["labels"][:, 1:] != -100).sum()
    for rows in (slice(0, 1), slice(1, 4)):
        part = {key: value[rows] for key, value in batch.items()}
        loss_of(constraint, split, part, Step(1, micro_batches=2, tokens=count)).backward()
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
    assert constraint.record.receipt.steps == [[1, 1]]


def test_a_batch_without_a_response_adds_nothing_and_keeps_the_graph():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings(hold_data=True))
    loss_of(constraint, model, batch).backward()
    loss = loss_of(constraint, model, without_response(batch), Step(2, tokens=7))
    assert loss.item() == 0.0
    loss.backward()


def test_without_a_step_each_batch_is_the_next_one():
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings())
    for step in (None, None, Step(5), None):
        loss_of(constraint, model, a_batch(), step)
    assert constraint.record.receipt.steps == [[1, 2], [5, 6]]


def test_a_step_anticipates_the_averaging_over_ranks():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    moved(model)
    alone = loss_of(constraint, model, batch).item()
    count = int((batch["labels"][:, 1:] != -100).sum())
    of_two = loss_of(constraint, model, batch, Step(2, tokens=torch.tensor(4 * count), world_size=2)).item()
    assert of_two == pytest.approx(alone * 2 / 4, rel=1e-6)


@pytest.mark.parametrize("micro_batches", [0, -1])
def test_a_step_has_a_micro_batch(micro_batches):
    with pytest.raises(ConfigError, match=f"micro_batches={micro_batches}.*1 or more"):
        Step(1, micro_batches=micro_batches)


def test_steps_are_counted_over_the_whole_run():
    """Each epoch from 1 again would have the same anchors each time, and count as one."""
    model, batch = adapted(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with pytest.raises(ConfigError, match="number=0"):
        Step(0)
    loss_of(constraint, model, batch, Step(2))
    loss_of(constraint, model, batch, Step(2))
    with pytest.raises(ConfigError, match=r"number=1: it goes back, from 2.*all epochs.*record\.begin"):
        loss_of(constraint, model, batch, Step(1))
    constraint.record.begin()
    loss_of(constraint, model, batch, Step(1))
    assert constraint.record.receipt.steps == [[1, 1]]


# --- precision ---


@pytest.mark.parametrize("build", [tiny_model, adapted])
@pytest.mark.parametrize("terms", [*TERMS, "anchors"])
def test_the_loss_outside_of_the_autocast_that_the_model_ran_in(build, terms):
    """As in an Accelerate loop, which gives the precision to the forward pass alone: here a norm yields float32."""
    config = settings(**{**TERMS, "anchors": {"hold_data": True, "anchors": FEW_ANCHORS}}[terms])
    batch = a_batch()

    def loss(scope):
        model = with_float32_norms(build())
        with torch.autocast("cpu", torch.bfloat16):
            constraint = PactConstraint(model, TOKENIZER, config)
            moved(model)
            with constraint.watch(batch):
                output = model(**batch)
        with scope:
            added = constraint.loss(batch)
        (output.loss + added).backward()
        assert all(torch.isfinite(own).all() for own in gradients(model).values() if own is not None)
        return added.item()

    assert loss(nullcontext()) == loss(torch.autocast("cpu", torch.bfloat16)) != 0


def test_gradient_checkpointing_and_bfloat16():
    model = tiny_model().to(torch.bfloat16)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = copy.deepcopy(model)
    _, loss = constrained(model, settings(hold_data=True), a_batch())
    loss.backward()
    plain.gradient_checkpointing_disable()
    _, again = constrained(plain, settings(hold_data=True), a_batch())
    again.backward()
    assert loss.dtype == torch.float32
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
