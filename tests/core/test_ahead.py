"""Anchors with a backward pass of their own, before the forward pass of the batch (spec/PACT.md, clause C10)."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from loop import (
    FEW_ANCHORS,
    TOKENIZER,
    TOKENS,
    a_batch,
    adapted,
    gradients,
    loss_of,
    moved,
    settings,
    without_response,
)
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.errors import ConfigError
from pact_plugin.model.head import language_head
from pact_plugin.terms.step import Step

ANCHORS = FEW_ANCHORS | {"per_step": 4, "tokens": 4}


def built(model, **changes):
    return PactConstraint(model, TOKENIZER, settings(**({"weight": 1.5, "anchors": ANCHORS} | changes)))


def two_steps(build, *, ahead: bool, **changes):
    """Losses, gradients, metrics and receipt of two steps of two micro-batches, the second without a response."""
    model = build()
    constraint = built(model, **changes)
    moved(model)
    batches = [a_batch(), a_batch(1), a_batch(2), without_response(a_batch(3))]
    losses = []
    for number, batch in enumerate(batches):
        step = Step(number // 2 + 1, micro_batches=2, tokens=11, world_size=3)
        if ahead:
            constraint.ahead(batch, step).backward()
        losses.append(loss_of(constraint, model, batch, step))
        if losses[-1].requires_grad:  # anchors alone leave nothing to it
            losses[-1].backward()
    constraint.record.flush()
    return losses, gradients(model), constraint.metrics(), constraint.record.receipt


@pytest.mark.parametrize("changes", [{}, {"easing": False}, {"hold_data": True}])
@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_the_same_loss_gradient_and_metrics_as_in_one_backward_pass(build, changes):
    together, apart = (two_steps(build, ahead=ahead, **changes) for ahead in (False, True))
    for ours, theirs in zip(apart[0], together[0], strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for name, gradient in together[1].items():
        torch.testing.assert_close(apart[1][name], gradient, atol=1e-6, rtol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in apart[1].values()) > 1e-3
    assert apart[2] == pytest.approx(together[2], rel=1e-5)
    assert apart[2]["pact/anchor_divergence"] > 1e-4
    assert apart[3].steps == together[3].steps == [[1, 2]]


def test_in_a_loop_that_counts_no_steps():
    together, apart = [], []
    for found, ahead in ((together, False), (apart, True)):
        model, batch = adapted(), a_batch()
        constraint = built(model)
        moved(model)
        for _ in range(2):
            if ahead:
                constraint.ahead(batch).backward()
            loss_of(constraint, model, batch).backward()
            found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    for ours, theirs in zip(apart, together, strict=True):
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"anchors": False}, {"weight": 0}])
def test_without_anchors_it_adds_nothing(changes):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS, **changes))
    loss = constraint.ahead(batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(gradient is None for gradient in gradients(model).values())
    loss_of(constraint, model, batch)


def test_it_reads_the_prompts_in_the_precision_around_it():
    model = adapted()
    constraint = built(model)
    seen = []
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        constraint.ahead(a_batch()).backward()
    assert seen[-1] == torch.bfloat16


def test_of_another_step_than_the_loss():
    model, batch = adapted(), a_batch()
    constraint = built(model)
    constraint.ahead(batch, Step(3)).backward()
    with pytest.raises(ConfigError, match=r"^step=4: `ahead` .* micro-batch 1 of step 3.*the same `step`\.$"):
        loss_of(constraint, model, batch, Step(4))


def test_it_is_needed_where_checkpointing_is_reentrant_on_several_ranks(monkeypatch):
    monkeypatch.setattr("pact_plugin.terms.anchors.world_size", lambda: 2)
    model, batch = tiny_model().train(), a_batch()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    constraint = built(model)
    constraint.ahead(batch).backward()
    loss_of(constraint, model, batch).backward()
    with pytest.raises(ConfigError, match=r"constraint\.ahead.*use_reentrant: false"):
        loss_of(constraint, model, batch)


@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_a_model_may_be_moved_to_its_device_after_it_was_constrained(monkeypatch, build):
    """As trainers do under FSDP and DeepSpeed. What stayed behind would not meet tensors on `meta`, whose values
    nothing may look at: the host would wait for an accelerator."""
    monkeypatch.setattr(
        "pact_plugin.constraint.ambient_autocast", lambda device: nullcontext()
    )  # unknown to meta
    model = build()
    model.set_attn_implementation("eager")  # the other kinds look at the mask's values
    constraint = built(model, easing=False)
    constraint.ahead(a_batch(), Step(1, tokens=12))  # a lasting reference is read in the first step
    model.to("meta")
    given = []
    language_head(model).decoder.register_forward_pre_hook(
        lambda module, args, inputs: given.append(inputs["input_ids"].device.type), with_kwargs=True
    )
    batch = {name: values.to("meta") for name, values in a_batch().items()}
    added = constraint.ahead(batch, Step(2, tokens=12))
    added.backward()
    assert given == ["meta"]
    assert added.is_meta
    assert all(parameter.grad.is_meta for parameter in model.parameters() if parameter.requires_grad)
