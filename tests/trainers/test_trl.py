"""PACT in TRL's SFTTrainer: every mode that people use, and everything that must not pass in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pact_trl import PactSFTTrainer
from peft import get_peft_model
from sft import TOKENIZER, TOKENS, completions, conversations, lora, sft_trainer, train_logs, weights
from tiny import tiny_model
from transformers import TrainerCallback
from trl import SFTTrainer

import pact_plugin as pact
from pact_plugin.errors import (
    AdapterError,
    ConfigError,
    HiddenStatesNotSeenError,
    NoResponseError,
    ReceiptError,
    TokenizerMismatchError,
)
from pact_plugin.hooks import manager
from pact_plugin.hooks.spec import hookimpl
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

CONFIG = pact.PactConfig(safety_tokens=TOKENS, weight=2.0)
COPIED = CONFIG.model_copy(update={"reference": "frozen_copy"})
METRICS = {"loss", "divergence", "safety_mass", "safety_mass_reference", "eased", "positions"}


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"loss_type": "nll"}, completions),
        ({"loss_type": "chunked_nll"}, completions),
        ({"loss_type": "dft"}, completions),
        ({"packing": True, "packing_strategy": "bfd", "max_length": 96}, completions),
        ({"padding_free": True, "max_length": None}, completions),
        ({"assistant_only_loss": True}, conversations),
        ({"completion_only_loss": True}, completions),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
            completions,
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            completions,
        ),
        ({"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}, completions),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore")
def test_modes(tmp_path, settings, data, with_lora):
    trainer = sft_trainer(tmp_path, data=data(), peft=lora() if with_lora else None, **settings)
    assert pact.attach(trainer, CONFIG) is trainer
    assert isinstance(trainer, SFTTrainer)
    trainer.train()
    logs = train_logs(trainer)
    assert len(logs) == 3
    for log in logs:
        assert {name.removeprefix("pact/") for name in log if name.startswith("pact/")} >= METRICS
        assert log["pact/positions"] > 0
    assert logs[0]["pact/divergence"] == pytest.approx(0, abs=1e-6)
    assert logs[-1]["pact/divergence"] > 1e-7
    several_epochs = "packing" in settings or "gradient_accumulation_steps" in settings
    expected = "adapter_off" if with_lora and not several_epochs else "stored"
    assert trainer.pact.receipt.reference == expected


def test_packing_constrains_the_same_positions_as_padding(tmp_path):
    def epoch(**settings) -> tuple[float, float]:
        trainer = sft_trainer(tmp_path, data=completions(12), learning_rate=0.0, max_steps=-1, **settings)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            pact.attach(trainer, COPIED)
            for parameter in trainer.model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        trainer.train()
        trainer.pact.flush()
        return trainer.pact.receipt.positions, trainer.pact.receipt.divergence

    padded = epoch(num_train_epochs=1)
    packed = epoch(num_train_epochs=1, packing=True, max_length=96)
    assert padded[0] == packed[0] == sum(len(completion_ids(row)) for row in completions(12))
    assert packed[1] == pytest.approx(padded[1], rel=1e-4)
    assert padded[1] > 0.1


def completion_ids(row) -> list[int]:
    prompt = TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    return TOKENIZER.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)[len(prompt) :]


def test_two_assistant_turns_are_two_responses(tmp_path):
    trainer = sft_trainer(tmp_path, data=conversations(4), assistant_only_loss=True, max_steps=1)
    pact.attach(trainer, CONFIG)
    batch = next(iter(trainer.get_train_dataloader()))
    from pact_plugin.data.positions import positions_of

    found = positions_of(batch)
    assert int(found.response.max()) + 1 == 2 * batch["labels"].shape[0]
    assert (found.index == 0).sum() == 2 * batch["labels"].shape[0]


def test_the_evaluation_loss_stays_the_tasks(tmp_path):
    trainer = sft_trainer(tmp_path)
    plain = trainer.evaluate()["eval_loss"]
    pact.attach(trainer, CONFIG)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == plain
    assert {f"eval_pact/{name}" for name in METRICS if name != "loss"} <= set(metrics)
    assert metrics["eval_pact/divergence"] == pytest.approx(0, abs=1e-9)
    trainer.train()
    assert trainer.evaluate()["eval_pact/divergence"] > 0
    assert trainer.evaluate(metric_key_prefix="held")["held_pact/divergence"] > 0


def test_trackers_see_the_metrics_averaged_over_accumulation(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(dict(logs))

    def run(batch_size: int, accumulation: int) -> list[dict[str, float]]:
        seen.clear()
        trainer = sft_trainer(
            tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
        )
        trainer.add_callback(Tracker())
        pact.attach(trainer, CONFIG.model_copy(update={"anchors": 0}))  # each micro-batch has others
        trainer.train()
        return [log for log in seen if "loss" in log]

    whole, split = run(4, 1), run(1, 4)
    for a, b in zip(whole, split, strict=True):
        for name in METRICS:
            assert a[f"pact/{name}"] == pytest.approx(b[f"pact/{name}"], rel=1e-3, abs=1e-7)


def test_two_ranks_log_and_count_what_one_process_does(tmp_path):
    def run(folder: Path, command: list[str], batch_size: int) -> dict:
        folder.mkdir()
        script = Path(__file__).parents[1] / "support" / "ddp_sft.py"
        done = subprocess.run(
            [*command, str(script), str(folder), str(batch_size)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / "result.json").read_text())

    alone = run(tmp_path / "one", [sys.executable], 4)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = run(tmp_path / "two", launcher, 2)
    assert (alone["ranks"], together["ranks"]) == (1, 2)
    for a, b in zip(alone["logs"], together["logs"], strict=True):
        for name in METRICS:
            assert a[f"pact/{name}"] == pytest.approx(b[f"pact/{name}"], rel=1e-3, abs=1e-6), name
    assert alone["eval"]["eval_pact/divergence"] == pytest.approx(
        together["eval"]["eval_pact/divergence"], rel=1e-3
    )
    for name, norm in alone["norms"].items():
        assert together["norms"][name] == pytest.approx(norm, rel=1e-5)
    one, two = (Receipt.read(tmp_path / run / "checkpoint-3") for run in ("one", "two"))
    assert (one.steps, one.positions) == (two.steps, two.positions)
    assert "3 steps" in verify_run(tmp_path / "two" / "checkpoint-3")


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_an_interrupted_run_resumes_as_one(tmp_path, with_lora):
    def trainer(folder: Path, steps: int) -> SFTTrainer:
        built = sft_trainer(
            folder, peft=lora() if with_lora else None, max_steps=steps, save_strategy="steps", save_steps=2
        )
        return pact.attach(built, CONFIG)

    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    trainer(tmp_path / "cut", 2).train()
    resumed = trainer(tmp_path / "cut", 4)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, atol=1e-6, rtol=1e-5)
    assert resumed.pact.receipt.steps == [[1, 4]]
    assert resumed.pact.receipt.positions == Receipt.read(tmp_path / "whole" / "checkpoint-4").positions
    for folder in ("checkpoint-2", "checkpoint-4", "."):
        assert verify_run(tmp_path / "cut" / folder).startswith("constrained:")
    assert pact.SafetyTokens.load(str(tmp_path / "cut" / "pact_safety_tokens.safetensors")) == TOKENS
    assert not list((tmp_path / "cut").glob("checkpoint-*/pact_reference*"))


def test_a_checkpoint_without_a_receipt_is_not_resumed(tmp_path):
    plain = sft_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    plain.train()
    constrained = pact.attach(sft_trainer(tmp_path, max_steps=4), CONFIG)
    with pytest.raises(ReceiptError, match="no receipt"):
        constrained.train(resume_from_checkpoint=True)
    with pytest.raises(ReceiptError, match="no receipt"):
        verify_run(tmp_path / "checkpoint-2")


def test_an_adapter_that_holds_training_keeps_its_safety_as_the_reference(tmp_path):
    model = get_peft_model(tiny_model(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    trainer = pact.attach(sft_trainer(tmp_path, model=model), CONFIG)
    trainer.train()
    assert trainer.pact.receipt.reference == "frozen_copy"  # auto: one epoch
    assert train_logs(trainer)[0]["pact/divergence"] == pytest.approx(
        0, abs=1e-7
    )  # the task's own log-probabilities
    assert train_logs(trainer)[-1]["pact/divergence"] > 2e-7


def test_pact_sft_trainer_is_the_same(tmp_path):
    attached = pact.attach(sft_trainer(tmp_path), CONFIG)
    attached.train()
    built = sft_trainer(tmp_path, trainer_class=PactSFTTrainer, trainer_settings={"pact": CONFIG})
    built.train()
    assert [log["loss"] for log in train_logs(attached)] == [log["loss"] for log in train_logs(built)]
    assert all(torch.equal(weights(built)[name], weight) for name, weight in weights(attached).items())


def test_plugins_are_told_the_metrics_of_each_log(tmp_path):
    told = []

    class Listener:
        @hookimpl
        def pact_step(self, step, metrics):
            told.append((step, metrics["pact/positions"]))

    manager.register(Listener(), "listener")
    try:
        trainer = pact.attach(sft_trainer(tmp_path), CONFIG)
        trainer.train()
    finally:
        manager.plugin_manager().unregister(name="listener")
    assert told == [(step + 1, log["pact/positions"]) for step, log in enumerate(train_logs(trainer))]


def test_published_objective(tmp_path):
    config = pact.PactConfig(safety_tokens=TOKENS, objective="published", weight=1.0)
    trainer = pact.attach(sft_trainer(tmp_path, peft=lora()), config)
    trainer.train()
    assert all(log["pact/divergence"] > 0 for log in train_logs(trainer))


# --- what must not pass in silence ---


def test_a_subclass_whose_loss_never_runs_the_model(tmp_path):
    class Silent(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return sum(p.sum() for p in model.parameters()) * 0.0

    uneased = pact.PactConfig(safety_tokens=CONFIG.safety_tokens, easing=False)
    trainer = pact.attach(sft_trainer(tmp_path, trainer_class=Silent), uneased)
    with pytest.raises(HiddenStatesNotSeenError, match="not seen in this step"):
        trainer.train()


@pytest.mark.parametrize("base", [SFTTrainer, PactSFTTrainer])
def test_a_subclass_with_a_loss_of_its_own_needs_easing_off(tmp_path, base):
    class Weighted(base):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    def constrained(easing):
        config = pact.PactConfig(safety_tokens=CONFIG.safety_tokens, easing=easing)
        if base is PactSFTTrainer:
            return sft_trainer(tmp_path, trainer_class=Weighted, trainer_settings={"pact": config})
        return pact.attach(sft_trainer(tmp_path, trainer_class=Weighted), config)

    with pytest.raises(AdapterError, match=r"compute_loss.*Weighted.*easing: false"):
        constrained(easing=True)
    constrained(easing=False).train()


def test_a_trainer_that_no_adapter_knows():
    with pytest.raises(AdapterError, match="no adapter knows"):
        pact.attach(object(), CONFIG)


def test_constrained_twice(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path), CONFIG)
    with pytest.raises(AdapterError, match="constrained already"):
        pact.attach(trainer, CONFIG)


def test_labels_all_ignored(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path), CONFIG)
    collator = trainer.data_collator

    def ignore_all(examples):
        batch = collator(examples)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch

    trainer.data_collator = ignore_all
    with pytest.raises(NoResponseError, match="labels"):
        trainer.train()


def test_nothing_masked_warns(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path, completion_only_loss=False), CONFIG)
    with pytest.warns(UserWarning, match="completion_only_loss"):
        trainer.train()


def test_another_tokenizers_tokens_and_unknown_keys(tmp_path):
    trainer = sft_trainer(tmp_path)
    other = pact.SafetyTokens(TOKENS.ids, TOKENS.weights, TOKENS.tokens, TOKENS.vocab_size, "0" * 64)
    with pytest.raises(TokenizerMismatchError):
        pact.attach(trainer, pact.PactConfig(safety_tokens=other))
    with pytest.raises(ConfigError, match=r"wieght.*Did you mean `weight`"):
        pact.attach(trainer, {"wieght": 1.0})
    assert type(trainer) is SFTTrainer, "a refused trainer is left as it was"


@pytest.mark.filterwarnings("ignore")
def test_easing_refuses_a_loss_that_it_cannot_ease(tmp_path):
    trainer = sft_trainer(tmp_path, label_smoothing_factor=0.1, loss_type="nll")
    with pytest.raises(AdapterError, match=r"label_smoothing_factor=0.1.*easing: false"):
        pact.attach(trainer, CONFIG)
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, easing=False)).train()
    own = sft_trainer(
        tmp_path, trainer_settings={"compute_loss_func": lambda outputs, labels, **kw: outputs.logits.sum()}
    )
    with pytest.raises(AdapterError, match="compute_loss_func"):
        pact.attach(own, CONFIG)
