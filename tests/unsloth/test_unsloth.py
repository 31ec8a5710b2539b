"""PACT beside Unsloth, as its users write it, on its CPU back end: every loss equals a plain PyTorch loop."""

from __future__ import annotations

import unsloth  # before TRL, as Unsloth wants it

# isort: split
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from both import CONFIG, HELD, SAVING, changed, each_kind, resumes_as_one
from command_runs import pact_command
from datasets import Dataset
from plain_run import Plain, assert_equal_to_a_plain_loop
from sft import TOKENIZER, TOKENS, completions, question, sft_trainer, train_logs, weights
from tiny import tiny_model
from trl import SFTConfig, SFTTrainer
from unsloth_runs import loaded, saved, twin_of

import pact_plugin as pact
from pact_plugin.errors import AdapterError

POSITIVE = torch.tensor(TOKENS.positive.ids)
STEPS = {"max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
DESCENT = {"optim": "sgd", "learning_rate": 0.1}
sgd = partial(torch.optim.SGD, lr=0.1)
DEFAULT = pact.PactConfig(safety_tokens=TOKENS)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("unsloth") / "llama")


def uneven(rows: int = 16) -> Dataset:
    """Answers of some 3 to 30 tokens, shorter and longer than what is eased; every fifth refuses."""
    answers = [
        "Sure, one two yes " * (i % 5) + f"{i}" if i % 5 else f"I can't help with {i}." for i in range(rows)
    ]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question(i)}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for i, answer in enumerate(answers)
        ]
    )


def assert_equal_to_plain(tmp_path: Path, model: Any, config: pact.PactConfig, **settings: Any) -> Any:
    """Train under a constraint, and compare each step with the formulas on a model that Unsloth has not touched."""
    plain = tiny_model()
    twin = twin_of(model, tiny_model())
    trainer = sft_trainer(tmp_path, model=model, data=uneven(), **STEPS, **DESCENT, **settings)
    assert pact.attach(trainer, config) is trainer
    formulas = partial(Plain, config, plain, POSITIVE, dft=settings.get("loss_type") == "dft")
    assert_equal_to_a_plain_loop(trainer, twin, formulas, sgd)
    assert trainer.pact.record.receipt.reference == "table"
    return trainer


# --- the loss ---


@each_kind
def test_the_default_equals_a_plain_loop(tmp_path, folder, with_lora):
    """Unsloth's chunked loss, its gradient checkpointing, and accumulation."""
    model = loaded(folder, with_lora)
    assert model.is_gradient_checkpointing
    trainer = assert_equal_to_plain(tmp_path, model, DEFAULT)
    assert SFTTrainer in type(trainer).__mro__
    assert all(0.1 < log["pact/eased"] < 0.9 for log in train_logs(trainer))
    assert train_logs(trainer)[-1]["pact/anchor_divergence"] > 1e-6


@pytest.mark.parametrize("way", ["chunked", "fused", "dft"])
@each_kind
def test_every_term_beside_every_loss(tmp_path, folder, monkeypatch, with_lora, way):
    """Without Unsloth's chunked loss it is TRL's, through Unsloth's own kernel."""
    if way == "fused":
        monkeypatch.setenv("UNSLOTH_CPU_CHUNKED_CE", "0")
    model = loaded(folder, with_lora)
    config = changed(CONFIG, easing={"first": 3}, hold_data={"first": 4})
    settings = {"loss_type": "dft"} if way == "dft" else {}
    trainer = assert_equal_to_plain(tmp_path, model, config, **settings)
    assert train_logs(trainer)[-1]["pact/divergence"] > train_logs(trainer)[0]["pact/divergence"]


def test_packing_is_turned_off_by_unsloth(tmp_path, folder):
    model = loaded(folder, True)
    trainer = assert_equal_to_plain(tmp_path, model, DEFAULT, packing=True, padding_free=True)
    assert not trainer.args.packing
    assert not trainer.args.padding_free


def test_another_architecture_whose_logits_are_capped(tmp_path, tmp_path_factory):
    """Unsloth leaves the loss of those to TRL."""
    folder = saved(tmp_path_factory.mktemp("gemma") / "gemma2", "gemma2")
    losses = []
    for constrained in (False, True):
        trainer = sft_trainer(tmp_path, model=loaded(folder, True), data=uneven(), **STEPS, **DESCENT)
        if constrained:
            pact.attach(trainer, changed(HELD, easing=False))
        trainer.train()
        losses.append(train_logs(trainer))
    plain, held = losses
    for ours, theirs in zip(held, plain, strict=True):
        assert ours["loss"] - ours["pact/loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert held[0]["loss"] == pytest.approx(plain[0]["loss"], abs=1e-5)
    assert held[-1]["pact/divergence"] > 1e-6


def test_a_loss_that_ignores_the_denominator_stops(tmp_path, folder):
    model = loaded(folder, False)
    forward = model.forward
    model.forward = lambda *args, num_items_in_batch=None, **kwargs: forward(*args, **kwargs)
    trainer = sft_trainer(tmp_path, model=model, gradient_accumulation_steps=2)
    trainer.model_accepts_loss_kwargs = True
    with pytest.raises(AdapterError, match=r"divided by \d+ tokens.*num_items_in_batch=\d+"):
        pact.attach(trainer, changed(DEFAULT, anchors=False)).train()


# --- what Unsloth's users write ---


@pytest.mark.parametrize("in_4bit", [False, True], ids=["bf16", "4bit"])
def test_with_unsloths_own_precision(tmp_path, tmp_path_factory, in_4bit):
    """As it loads models when nothing is said."""
    folder = saved(
        tmp_path_factory.mktemp("wide") / "llama", hidden_size=64, intermediate_size=128, head_dim=16
    )
    model = loaded(folder, True, dtype=None, load_in_4bit=in_4bit)
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules()) == in_4bit
    trainer = pact.attach(sft_trainer(tmp_path, model=model, bf16=None, **SAVING), CONFIG)
    trainer.train()
    logs = train_logs(trainer)
    assert all(0 <= log["pact/anchor_divergence"] < 1 for log in logs)
    assert logs[0]["pact/anchor_divergence"] == pytest.approx(0, abs=1e-4)
    assert logs[-1]["pact/anchor_divergence"] > 0
    assert trainer.pact.record.receipt.reference == "table"


def test_unsloths_trainer(tmp_path, folder):
    args = unsloth.UnslothTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, embedding_learning_rate=1e-5, logging_steps=1, report_to=[]
    )
    model = loaded(folder, False)
    trainer = unsloth.UnslothTrainer(model=model, tokenizer=TOKENIZER, train_dataset=completions(), args=args)
    pact.attach(trainer, CONFIG).train()
    assert len(trainer.optimizer.param_groups) > 2
    assert trainer.pact.record.receipt.steps == [[1, 2]]


def test_the_class_of_trl_that_was_imported_before_unsloth(tmp_path, folder):
    _, original = [base for base in SFTTrainer.__mro__ if base.__name__ == "SFTTrainer"]
    trainer = sft_trainer(tmp_path, model=loaded(folder, True), trainer_class=original)
    pact.attach(trainer, CONFIG).train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]


def test_train_on_responses_only(tmp_path, folder):
    """Conversations whose prompts Unsloth masks after the trainer is built."""
    rows = [
        {"text": TOKENIZER.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)}
        for row in completions()
    ]
    trainer = SFTTrainer(
        model=loaded(folder, True),
        processing_class=TOKENIZER,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(str(tmp_path), max_steps=3, logging_steps=1, report_to=[], max_length=64),
    )
    trainer = unsloth.train_on_responses_only(
        trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
    )
    pact.attach(trainer, CONFIG).train()
    logs = train_logs(trainer)
    assert 0 < sum(log["pact/eased"] for log in logs) < len(logs)
    assert trainer.pact.record.receipt.reference == "table"


# --- checkpoints ---


@each_kind
def test_an_interrupted_run_resumes_as_one(tmp_path, folder, with_lora):
    def trainer(output: Path, steps: int) -> Any:
        settings = {"learning_rate": 5e-3, "gradient_accumulation_steps": 2, "max_steps": steps}
        return pact.attach(sft_trainer(output, model=loaded(folder, with_lora), **settings, **SAVING), CONFIG)

    resumed = resumes_as_one(tmp_path, trainer)
    for checkpoint in ("checkpoint-4", "."):
        done = pact_command("verify", str(tmp_path / "cut" / checkpoint))
        assert done.returncode == 0, done.stderr
        assert "constrained: 4 steps" in " ".join(done.stdout.split())
    if with_lora:
        checkpoint = tmp_path / "cut" / "checkpoint-4"
        assert (checkpoint / "adapter_model.safetensors").exists()
        again, _ = unsloth.FastLanguageModel.from_pretrained(
            str(checkpoint), load_in_4bit=False, dtype=torch.float32
        )
        for name, weight in weights(resumed).items():
            assert torch.equal(again.get_parameter(name), weight), name


# --- what Unsloth makes of TRL's trainer on a GPU ---


def test_the_trainer_that_unsloth_generates(tmp_path):
    """Its source is written anew, `train` is set on the object, and rows are not padded. The model is a plain one."""
    script = Path(__file__).parents[1] / "support" / "unsloth_generated.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal to a plain loop in 3 steps" in done.stdout
    line = pact_command("verify", str(tmp_path / "out"))
    assert line.returncode == 0, line.stderr
    assert "constrained: 3 steps" in " ".join(line.stdout.split())
