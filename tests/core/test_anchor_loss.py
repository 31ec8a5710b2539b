"""Anchors beside a task loss that has no labels, in a loop of one's own (spec/PACT.md, clause C10.6)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from loop import FEW_ANCHORS, POSITIVE, TOKENIZER, TOKENS, adapted, anchors_of, gradients, moved
from plain import anchor_divergence
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint, Step
from pact_plugin.data.facts import DataFacts
from pact_plugin.errors import ConfigError

ANCHORS = FEW_ANCHORS | {"per_step": 4, "tokens": 4}
WEIGHT = 1.5


def built(model: Any, **changes: Any) -> PactConstraint:
    settings = {"safety_tokens": TOKENS, "easing": False, "anchors": ANCHORS, "weight": WEIGHT} | changes
    return PactConstraint(model, TOKENIZER, PactConfig(**settings))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_the_mean_over_micro_batches_of_the_mean_over_anchors(build, apart):
    """However many tokens a micro-batch has."""
    model, twin = build(), build()
    constraint = built(model)
    moved(model), moved(twin)
    expected = []
    for number in range(2):
        loss = constraint.anchor_loss(Step(1, micro_batches=2), tokens=3 + 40 * number, apart=apart)
        (loss / 2).backward()
        chosen = anchors_of(constraint).schedule.chosen(1, number, 0, 2)
        safety = torch.tensor(POSITIVE)
        expected.append(anchor_divergence(twin, tiny_model(), anchors_of(constraint), chosen, safety))
        assert loss.item() == pytest.approx(WEIGHT * expected[-1].item(), rel=1e-4)
    mean = torch.stack(expected).mean()
    (WEIGHT * mean).backward()
    for name, gradient in gradients(twin).items():
        if gradient is not None:
            torch.testing.assert_close(gradients(model)[name], gradient, atol=1e-6, rtol=1e-4)
    metrics, receipt = constraint.metrics(), constraint.record.receipt
    assert metrics["pact/anchor_divergence"] == pytest.approx(mean.item(), rel=1e-4)
    assert mean.item() > 1e-4
    assert metrics["pact/loss"] == pytest.approx(WEIGHT * mean.item(), rel=1e-4)
    assert (receipt.steps, receipt.trained_tokens, receipt.terms) == ([[1, 1]], 46, ["anchors"])


def test_in_a_loop_that_counts_no_steps():
    model = adapted()
    constraint = built(model)
    moved(model)
    for _ in range(3):
        constraint.anchor_loss(tokens=5).backward()
    assert constraint.record.receipt.steps == [[1, 3]]


@pytest.mark.parametrize("changes", [{"easing": True}, {"hold_data": True}])
def test_what_looks_at_labels_has_none(changes):
    constraint = built(tiny_model(), **changes)
    (key,) = changes
    with pytest.raises(ConfigError, match=rf"^{key}=True: .*labels.*Turn `{key}` off\.$"):
        constraint.anchor_loss(tokens=1)


def test_reentrant_checkpointing_on_several_ranks_needs_a_backward_pass_of_its_own(monkeypatch):
    monkeypatch.setattr("pact_plugin.terms.anchors.world_size", lambda: 2)
    model = tiny_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    constraint = built(model)
    constraint.anchor_loss(tokens=1, apart=True).backward()
    with pytest.raises(ConfigError, match="reentrant checkpointing on several ranks"):
        constraint.anchor_loss(tokens=1)


# --- data without labels ---


def test_easing_by_default_goes_off_with_a_word(caplog):
    config = PactConfig(safety_tokens=TOKENS, anchors=ANCHORS)
    with caplog.at_level(logging.WARNING, logger="pact_plugin"):
        constraint = PactConstraint(tiny_model(), TOKENIZER, config, data=DataFacts(labels=False))
    assert [term.name for term in constraint.terms] == ["anchors"]
    assert constraint.config.easing is None
    assert config.easing is not None, "the user's own settings stay as they are"
    assert caplog.text.count("anchors alone are held") == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hold_data": True}, "hold_data"),
        ({"easing": True}, "easing"),
        ({"easing": False, "anchors": False, "advanced": {"published": True}}, "advanced.published"),
        ({"advanced": {"store": "folder"}}, "advanced.store"),
        ({"anchors": False}, "anchors"),
        ({"weight": 0}, "weight"),
    ],
)
def test_settings_that_need_labels(changes, key):
    with pytest.raises(ConfigError, match=f"Remove `{key}`") as refused:
        PactConfig(**changes).without_labels()
    assert refused.value.key == key


def test_settings_that_do_not():
    config = PactConfig(weight=2.0, easing=False, anchors=ANCHORS, reference="path")
    assert config.without_labels() == config
