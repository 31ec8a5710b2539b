"""PACT in TRL's DPOTrainer and KTOTrainer: anchors alone, beside the trainer's own loss."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from both import SAVING, changed
from loop import FEW_ANCHORS, taught
from peft import get_peft_model
from preferences import (
    CONFIG,
    DESCENT,
    FIVE_STEPS,
    assert_equal_to_a_plain_loop,
    dpo_loss,
    dpo_trainer,
    kto_trainer,
    lora_of_dpo,
    twin,
)
from sft import TOKENIZER, TOKENS, train_logs, weights
from tiny import tiny_model
from trl import DPOTrainer

import pact_plugin as pact
from pact_plugin.data.facts import DataFacts
from pact_plugin.errors import AdapterError, ConfigError, ReceiptError
from pact_plugin.hooks.manager import find_adapter
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

each_kind = pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
each_trainer = pytest.mark.parametrize("build", [dpo_trainer, kto_trainer], ids=["dpo", "kto"])


def kind(with_lora: bool) -> dict[str, Any]:
    return {"peft": lora_of_dpo()} if with_lora else {}


@each_trainer
def test_a_trainer_whose_model_is_replaced(tmp_path, build):
    """Anchors watch no forward pass: they would hold a model that nobody trains."""
    trainer = pact.attach(build(tmp_path), CONFIG)
    trainer.model = trainer.model_wrapped = tiny_model()
    with pytest.raises(AdapterError, match=r"trainer\.model='.*another than the one that was constrained"):
        trainer.train()


# --- a step ---


@each_kind
def test_five_steps_of_dpo_equal_a_plain_loop(tmp_path, with_lora):
    trainer = pact.attach(dpo_trainer(tmp_path, **kind(with_lora), **FIVE_STEPS), CONFIG)
    assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=tiny_model()))


@each_kind
def test_five_steps_of_kto_equal_a_plain_loop(tmp_path, with_lora):
    """Its task is that of the same trainer without PACT."""
    trainer = pact.attach(kto_trainer(tmp_path, **kind(with_lora), **FIVE_STEPS), CONFIG)
    unconstrained = kto_trainer(tmp_path / "plain", **kind(with_lora), **FIVE_STEPS)

    def task(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        named = dict(model.named_parameters())
        return torch.func.functional_call(
            _Loss(unconstrained), {f"model.{n}": p for n, p in named.items()}, (batch,)
        )

    assert_equal_to_a_plain_loop(trainer, task)


class _Loss(torch.nn.Module):
    """A trainer's loss as a function of its model's parameters."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.model, self._trainer = trainer.model, trainer

    def forward(self, batch: Any) -> torch.Tensor:
        return self._trainer.compute_loss(self.model, batch)


@each_kind
def test_a_last_step_of_fewer_micro_batches(tmp_path, with_lora):
    settings = {
        "max_steps": -1,
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 3,
        "rows": 20,
        **DESCENT,
    }
    trainer = pact.attach(dpo_trainer(tmp_path, **kind(with_lora), **settings), CONFIG)  # five of four pairs
    assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=tiny_model()), sizes=(3, 2))


@pytest.mark.parametrize(
    "settings",
    [{"streaming": True}, {"gradient_checkpointing": True}],
    ids=["streaming", "checkpointing"],
)
@each_kind
def test_other_ways_to_run(tmp_path, with_lora, settings):
    trainer = pact.attach(dpo_trainer(tmp_path, **kind(with_lora), **settings, **FIVE_STEPS), CONFIG)
    assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=tiny_model()))


@each_trainer
def test_in_bfloat16(tmp_path, build):
    trainer = pact.attach(build(tmp_path, peft=lora_of_dpo(), bf16=True), CONFIG)
    trainer.train()
    logs = train_logs(trainer)
    assert logs[0]["pact/anchor_divergence"] == pytest.approx(0, abs=5e-6)
    assert logs[-1]["pact/anchor_divergence"] > 1e-7


def test_an_optimiser_that_acts_on_each_gradient_at_once_gets_one(tmp_path):
    """Then the anchors are part of the batch's backward pass."""
    trainer = pact.attach(dpo_trainer(tmp_path, peft=lora_of_dpo(), **FIVE_STEPS), CONFIG)
    acted = []
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: acted.append(name))
    assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=tiny_model()))
    assert len(acted) == 10 * len(set(acted)) > 0


# --- the reference ---


@pytest.mark.parametrize(
    "settings", [{"ref_model": 1}, {"precompute_ref_log_probs": True}], ids=["another", "stored"]
)
@each_kind
def test_the_aligned_model_is_the_start_whatever_dpo_compares_with(tmp_path, with_lora, settings):
    seed = settings.get("ref_model", 0)
    given = settings | ({"ref_model": tiny_model(seed=seed)} if seed else {})
    trainer = pact.attach(dpo_trainer(tmp_path, **kind(with_lora), **given, **FIVE_STEPS), CONFIG)
    logs = assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=tiny_model(seed=seed)))
    assert logs[0]["pact/anchor_divergence"] == pytest.approx(0, abs=2e-6)


def test_an_adapter_that_already_holds_training(tmp_path):
    """TRL adds a copy of it as an adapter named `ref`."""
    torch.manual_seed(0)
    model = taught(get_peft_model(tiny_model(), lora_of_dpo()))
    trainer = dpo_trainer(tmp_path, model=model, **FIVE_STEPS)
    assert "ref" in trainer.model.peft_config
    pact.attach(trainer, CONFIG)
    logs = assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=twin(trainer)))
    assert logs[0]["pact/anchor_divergence"] == pytest.approx(0, abs=2e-6)
    assert trainer.pact.record.receipt.reference == "start"


# --- the run ---


@each_trainer
def test_logs_receipt_and_evaluation(tmp_path, build, caplog):
    trainer = build(tmp_path)
    before = trainer.evaluate()["eval_loss"]
    with caplog.at_level(logging.INFO, logger="pact_plugin"):
        assert pact.attach(trainer, {"safety_tokens": TOKENS, "anchors": FEW_ANCHORS}) is trainer
    assert caplog.text.count("so anchors alone are held") == 1
    evaluation = trainer.evaluate()
    assert evaluation["eval_loss"] == before
    assert not [name for name in evaluation if "pact" in name]
    trainer.train()
    for log in train_logs(trainer):
        assert {name for name in log if "pact" in name} == {
            "pact/loss",
            "pact/anchor_divergence",
            "pact/refusal_shift",
        }
    receipt = Receipt.read(tmp_path)
    assert (receipt.terms, receipt.steps, receipt.reference) == (["anchors"], [[1, 3]], "start")
    assert receipt.config["easing"] is False
    assert [one.name for one in (tmp_path / "_pact_store").iterdir()] == ["answers"]
    said = verify_run(tmp_path)
    assert said.startswith(f"constrained: 3 steps, {receipt.trained_tokens} tokens, anchor_divergence ")


def test_nothing_is_said_where_easing_was_turned_off(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="pact_plugin"):
        pact.attach(dpo_trainer(tmp_path), changed(CONFIG, easing=False))
    assert "anchors alone" not in caplog.text


@each_kind
def test_an_interrupted_run_resumes_as_one(tmp_path, with_lora):
    def trainer(folder: str, steps: int) -> Any:
        settings = {"learning_rate": 5e-3, "gradient_accumulation_steps": 2, "max_steps": steps, **SAVING}
        return pact.attach(dpo_trainer(tmp_path / folder, **kind(with_lora), **settings), CONFIG)

    whole = trainer("whole", 4)
    whole.train()
    trainer("cut", 2).train()
    resumed = trainer("cut", 4)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, atol=1e-6, rtol=1e-5)
    ours, theirs = (Receipt.read(tmp_path / name) for name in ("cut", "whole"))
    assert (ours.steps, ours.trained_tokens) == ([[1, 4]], theirs.trained_tokens)
    assert ours.mean("anchor_divergence") == pytest.approx(theirs.mean("anchor_divergence"), rel=1e-4)
    for folder in ("checkpoint-2", "checkpoint-4", "."):
        assert verify_run(tmp_path / "cut" / folder).startswith("constrained:")


def test_a_run_that_goes_on_without_the_constraint_does_not_verify(tmp_path):
    pact.attach(dpo_trainer(tmp_path, max_steps=2, **SAVING), CONFIG).train()
    dpo_trainer(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(ReceiptError, match="steps 3-4 of 4 were not constrained"):
        verify_run(tmp_path)


# --- refused ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hold_data": True}, r"^hold_data=True: .*anchors alone.*Remove `hold_data`\.$"),
        ({"easing": True}, r"^easing=True: .*Remove `easing`\.$"),
        ({"easing": {"first": 8}}, r"^easing=True: .*Remove `easing`\.$"),
        (
            {"easing": False, "anchors": False, "advanced": {"published": True}},
            r"^advanced\.published=True: .*Remove `advanced\.published`\.$",
        ),
        ({"advanced": {"store": "folder"}}, r"^advanced\.store='folder': .*Remove `advanced\.store`\.$"),
        ({"anchors": False}, r"^anchors=False: .*nothing is held without anchors.*Remove `anchors`"),
        ({"weight": 0}, r"^weight=0: .*nothing is held without anchors.*Remove `weight`"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@each_trainer
def test_what_needs_labels_is_refused(tmp_path, build, changes, words):
    trainer = build(tmp_path)
    before = type(trainer)
    with pytest.raises(ConfigError, match=words):
        pact.attach(trainer, {"safety_tokens": TOKENS} | changes)
    assert type(trainer) is before, "a refused trainer is left as it was"


@each_trainer
def test_attached_twice_and_a_replaced_loss(tmp_path, build):
    trainer = pact.attach(build(tmp_path), CONFIG)
    with pytest.raises(AdapterError, match="constrained already"):
        pact.attach(trainer, CONFIG)
    other = build(tmp_path)
    other.compute_loss = lambda *args, **kwargs: torch.zeros(())
    with pytest.raises(AdapterError, match="never be called"):
        pact.attach(other, CONFIG)


@each_trainer
def test_subclasses_are_known_by_one_adapter(tmp_path, build):
    trainer = build(tmp_path)
    trainer.__class__ = type("Mine", (type(trainer),), {})
    assert find_adapter(trainer).name == "trl preferences"


def test_a_constraint_without_labels_needs_no_trainer():
    constraint = pact.PactConstraint(tiny_model(), TOKENIZER, CONFIG, data=DataFacts(labels=False))
    assert [term.name for term in constraint.terms] == ["anchors"]


@pytest.mark.parametrize("framework", ["axolotl", "swift", "llamafactory"])
def test_preference_trainers_of_a_framework_are_known_to_its_own_adapter_alone(framework):
    """By the module of their class; each framework's own tests have the real ones."""
    own = type("TheirTrainer", (DPOTrainer,), {"__module__": f"{framework}.train.dpo.trainer"})
    assert find_adapter(own.__new__(own)).name.startswith(framework)
