"""A table says what a reference in each step says."""

from __future__ import annotations

from typing import Any

import pytest
from both import (
    CONFIG,
    HELD,
    changed,
    each_kind,
    each_trainer,
    of_transformers,
    of_trl,
    with_reference_in_steps,
)
from loop import trained
from sft import completions, conversations, lora, sft_trainer, train_logs
from tiny import tiny_model, with_float32_norms

import pact_plugin as pact

PACKED = {"packing": True, "packing_strategy": "bfd", "max_length": 96}
ROWS = {
    "padded": ({}, completions),
    "packed": (PACKED, completions),
    "wrapped": ({"packing": True, "packing_strategy": "wrapped", "max_length": 48}, completions),
    "padding-free": ({"padding_free": True, "max_length": None}, completions),
    "multi-turn": ({"assistant_only_loss": True, "gradient_accumulation_steps": 2}, conversations),
    "truncated": ({"max_length": 24}, completions),
}
MODELS = {
    "full": lambda: {"model": tiny_model()},
    "lora": lambda: {"model": tiny_model(), "peft": lora()},
    "trained lora": lambda: {"model": trained()},
}


# An adapter that held training is a full model to its reference, whatever the rows.
CASES = [(model, rows) for model in ("full", "lora") for rows in ROWS] + [
    ("trained lora", "padded"),
    ("trained lora", "packed"),
]


@pytest.mark.parametrize(("model", "rows"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_three_epochs_equal_a_reference_that_runs_in_every_step(tmp_path, model, rows):
    """At eased tokens the first gradients are rounding alone, which Adam with its own epsilon would blow up."""
    settings, data = ROWS[rows]

    def run(name: str, attach: Any) -> Any:
        epochs = {"num_train_epochs": 3, "max_steps": -1, "adam_epsilon": 1e-5}
        trainer = sft_trainer(tmp_path / name, data=data(), **MODELS[model](), **epochs, **settings)
        attach(trainer, HELD).train()
        return trainer

    online, stored = run("online", with_reference_in_steps), run("stored", pact.attach)
    assert stored.pact.record.receipt.reference == "table"
    assert online.pact.record.receipt.reference == ("adapter_off" if model == "lora" else "copy")
    losses, expected = ([log["loss"] for log in train_logs(t)] for t in (stored, online))
    assert losses == pytest.approx(expected, abs=1e-3)
    for name in ("divergence", "eased"):
        ours, theirs = ([log[f"pact/{name}"] for log in train_logs(t)] for t in (stored, online))
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-5), name
    assert train_logs(stored)[-1]["pact/divergence"] > 2e-5
    assert stored.pact.record.receipt.positions == online.pact.record.receipt.positions


def test_the_published_objective_and_first(tmp_path):
    published = {"easing": False, "hold_data": False, "advanced": {"published": {"first": 3}}}

    def losses(attach: Any) -> list[float]:
        trainer = sft_trainer(tmp_path, model=tiny_model(), data=conversations(), assistant_only_loss=True)
        attach(trainer, changed(HELD, **published)).train()
        return [log["loss"] for log in train_logs(trainer)]

    assert losses(pact.attach) == pytest.approx(losses(with_reference_in_steps), abs=1e-3)


@each_kind
def test_the_published_objective(tmp_path, with_lora):
    published = {"easing": False, "hold_data": False, "advanced": {"published": True}}
    trainer = sft_trainer(tmp_path, peft=lora() if with_lora else None)
    pact.attach(trainer, changed(HELD, **published)).train()
    assert all(log["pact/divergence"] > 0 for log in train_logs(trainer))


@each_trainer
@pytest.mark.parametrize("table", [True, False], ids=["table", "in each step"])
@each_kind
def test_the_reference_runs_in_the_precision_of_training(tmp_path, build, with_lora, table):
    """Under bfloat16 autocast the first step's divergence is that of equal models, and no more."""
    trainer = build(tmp_path, with_lora=with_lora, bf16=True, max_steps=1)
    (pact.attach if table else with_reference_in_steps)(trainer, HELD)
    trainer.train()
    (log,) = train_logs(trainer)
    assert log["pact/divergence"] == pytest.approx(0, abs=1e-6)
    assert trainer.pact.record.receipt.positions > 0


HOOKED = {"hooked": True}
"""With hooks that act on each gradient at once, so that the anchors are part of the batch's backward pass."""
STREAMED = {"streaming": True, "eval_strategy": "no"}
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}
"""For one step, as a batch of another length is compiled anew, for a long time; test_trl.py has more."""


@pytest.mark.parametrize(
    ("build", "settings"),
    [  # what is compiled is the model of either
        (of_trl, COMPILED),
        (of_trl, HOOKED),
        (of_trl, STREAMED),
        (of_transformers, HOOKED),
        (of_transformers, STREAMED),
    ],
    ids=["trl-compiled", "trl-hooked", "trl-streaming", "transformers-hooked", "transformers-streaming"],
)
def test_a_norm_that_yields_float32_before_a_bfloat16_head(tmp_path, build, settings):
    """A trainer gives its precision to the model's forward pass alone, and the head is read after it, too."""
    hooked = settings is HOOKED
    given = {} if hooked else settings
    model = with_float32_norms(tiny_model(num_hidden_layers=1))
    trainer = build(tmp_path, model=model, with_lora=True, bf16=True, **given)
    for parameter in trainer.model.parameters() if hooked else ():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _: None)
    pact.attach(trainer, CONFIG).train()
    first, *_ = train_logs(trainer)
    assert first["pact/divergence"] == pytest.approx(0, abs=1e-6)
    assert first["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    assert trainer.pact.record.receipt.steps == [[1, trainer.args.max_steps]]


@each_trainer
def test_an_adapter_that_holds_training_keeps_its_safety_as_the_reference(tmp_path, build):
    trainer = pact.attach(build(tmp_path, model=trained(), streaming=True, eval_strategy="no"), HELD)
    trainer.train()
    assert trainer.pact.record.receipt.reference == "copy"
    first, *_, last = train_logs(trainer)
    assert first["pact/divergence"] == pytest.approx(0, abs=1e-7)
    assert last["pact/divergence"] > 2e-7
