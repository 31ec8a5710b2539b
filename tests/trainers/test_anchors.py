"""Anchors in both trainers: how a step's are spread, and what they need of the reference."""

from __future__ import annotations

import pytest
from both import CONFIG, changed, each_kind, each_trainer, of_transformers
from loop import FEW_ANCHORS
from sft import completions, train_logs

import pact_plugin as pact
from pact_plugin.terms.anchor_schedule import Schedule

ALONE = changed(CONFIG, easing=False, hold_data=False)


@each_trainer
def test_a_last_step_of_fewer_micro_batches_has_as_many_anchors(tmp_path, build, monkeypatch):
    settings = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 3}
    trainer = build(tmp_path, data=completions(20), **settings)  # five micro-batches of four
    pact.attach(trainer, changed(CONFIG, anchors=FEW_ANCHORS | {"per_step": 6}))
    turns, which = [], Schedule.chosen
    monkeypatch.setattr(
        Schedule, "chosen", lambda order, *turn: turns.append((turn, which(order, *turn))) or turns[-1][1]
    )
    trainer.train()
    found = [(step, number, len(chosen)) for (step, number, _, _), chosen in turns]
    assert found == [(1, 0, 2), (1, 1, 2), (1, 2, 2), (2, 0, 3), (2, 1, 3)]


@each_kind
@each_trainer
def test_anchors_alone_ask_nothing_at_the_data(tmp_path, build, with_lora):
    """So they need no table, of data of any kind."""
    trainer = pact.attach(build(tmp_path, with_lora=with_lora, streaming=True, eval_strategy="no"), ALONE)
    passes = []
    trainer.pact.model.register_forward_hook(lambda module, *_: passes.append(module.training))
    trainer.train()
    assert trainer.pact.record.receipt.reference == "start"
    assert passes == [True] * 3, "the task's own"
    assert [one.name for one in (tmp_path / "_pact_store").iterdir()] == ["answers"]
    first, *_, last = train_logs(trainer)
    assert first["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    assert last["pact/anchor_divergence"] > 1e-6


@each_kind
def test_neftune_adds_no_noise_to_anchors(tmp_path, with_lora):
    trainer = of_transformers(tmp_path, with_lora=with_lora, learning_rate=0.0, neftune_noise_alpha=5.0)
    pact.attach(trainer, CONFIG)
    trainer.train()
    for log in train_logs(trainer):
        assert log["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
        assert log["pact/divergence"] > 1e-4, "the task's own pass has its noise"
