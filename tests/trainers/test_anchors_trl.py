"""Anchors in TRL's SFTTrainer: equal to a plain loop on full logits, in every way of training, and when resumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from plain import anchor_divergence
from sft import TOKENS, completions, conversations, lora, sft_trainer, train_logs, weights
from test_stored_modes import WAYS
from test_trl_equality import POSITIVE, Recording, plain_step_loss
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ReceiptError
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

CONFIG = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, anchors=3)
METRIC = "pact/anchor_divergence"


@pytest.mark.parametrize("hold", ["all", None])
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_four_steps_equal_a_plain_loop(tmp_path, with_lora, hold):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    # AdamW would blow up the rounding of gradients that are zero but for it, as at the first step.
    settings |= {"optim": "sgd", "learning_rate": 0.2}
    peft = lora() if with_lora else None
    trainer = sft_trainer(tmp_path, peft=peft, **settings)
    plain = sft_trainer(tmp_path, peft=peft, **settings).model
    trainer.data_collator = recording = Recording(trainer.data_collator)
    pact.attach(trainer, CONFIG.model_copy(update={"reference": "frozen_copy", "hold": hold}))
    trainer.train()

    aligned, pool = tiny_model(), trainer.pact.anchors
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.2)
    plain.train()
    moved, tokens = 0.0, 0
    for step, log in enumerate(train_logs(trainer)):
        micro_batches = recording.batches[2 * step : 2 * step + 2]
        counts = [(batch["labels"][:, 1:] != -100).sum() for batch in micro_batches]
        term = torch.zeros(())
        for number, count in enumerate(counts):
            documents = [pool.documents[i] for i in pool.chosen(step + 1, number, 0, 2)]
            mean = anchor_divergence(plain, aligned, documents, POSITIVE)
            term = term + mean * count / sum(counts)
        weight = 2.0 if hold == "all" else 0.0  # of the data
        task = plain_step_loss(plain, aligned, micro_batches, weight=weight, easing=True, loss_type="nll")
        loss = task + 2.0 * term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert log["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert log[METRIC] == pytest.approx(term.item(), rel=1e-3, abs=1e-6)
        moved, tokens = moved + log[METRIC] * sum(counts).item(), tokens + sum(counts).item()
        data = log["pact/divergence"] * log["pact/positions"] / sum(counts).item()
        held = data + log[METRIC] if hold == "all" else log[METRIC]
        assert log["pact/loss"] == pytest.approx(2 * held, rel=1e-4, abs=1e-6)
    assert train_logs(trainer)[-1][METRIC] > 1e-4
    receipt = trainer.pact.receipt
    assert receipt.trained_tokens == tokens
    assert receipt.mean_anchor_divergence == pytest.approx(moved / tokens, rel=1e-4)
    final = weights(trainer)
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(final[name], parameter.detach(), atol=1e-5, rtol=1e-5)


def test_a_last_step_of_fewer_micro_batches_has_as_many_anchors(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 3}
    trainer = sft_trainer(tmp_path, data=completions(20), **settings)  # five micro-batches of four
    pact.attach(trainer, CONFIG.model_copy(update={"anchors": 6}))
    pool, turns = trainer.pact.anchors, []
    which = pool.chosen
    pool.chosen = lambda *turn: turns.append((turn, which(*turn))) or turns[-1][1]
    trainer.train()
    found = [(step, number, len(chosen)) for (step, number, _, _), chosen in turns]
    assert found == [(1, 0, 2), (1, 1, 2), (1, 2, 2), (2, 0, 3), (2, 1, 3)]


def logs_of(folder: Path, with_lora: bool, data=completions, **settings) -> list[dict[str, float]]:
    trainer = sft_trainer(
        folder, model=tiny_model(), peft=lora() if with_lora else None, data=data(), **settings
    )
    pact.attach(trainer, CONFIG).train()
    return train_logs(trainer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore")
def test_checkpointed_and_compiled_steps_are_those_of_a_plain_run(tmp_path, way, with_lora):
    plain = logs_of(tmp_path / "plain", with_lora)
    other = logs_of(tmp_path / way, with_lora, **WAYS[way])
    for ours, theirs in zip(other, plain, strict=True):
        for name in ("loss", "pact/divergence", METRIC):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert plain[-1][METRIC] > 1e-6


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"packing": True, "packing_strategy": "bfd", "max_length": 96}, completions),
        ({"padding_free": True, "max_length": None}, completions),
        ({"assistant_only_loss": True, "loss_type": "chunked_nll"}, conversations),
        ({"bf16": True, "activation_offloading": False}, completions),
    ],
    ids=["packed", "padding-free", "multi-turn", "bf16"],
)
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore")
def test_modes(tmp_path, settings, data, with_lora):
    logs = logs_of(tmp_path, with_lora, data, **settings)
    rounding = 5e-6 if settings.get("bf16") else 2e-6
    assert logs[0][METRIC] == pytest.approx(0, abs=rounding)
    assert logs[-1][METRIC] > 2 * logs[0][METRIC] + 1e-6


def test_tensor_parallel_ranks_would_read_different_anchors(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path), CONFIG)
    trainer.accelerator.state.parallelism_config = SimpleNamespace(tp_size=2)
    try:
        with pytest.raises(AdapterError, match=r"tp_size=2.*anchors: 0"):
            trainer.train()
    finally:
        trainer.accelerator.state.parallelism_config = None


def test_an_evaluation_reads_no_anchors(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path), CONFIG)
    metrics = trainer.evaluate()
    assert "eval_pact/divergence" in metrics
    assert f"eval_{METRIC}" not in metrics
    assert "eval_pact/loss" not in metrics  # nothing is held there


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_an_interrupted_run_resumes_as_one(tmp_path, with_lora):
    def trainer(folder: Path, steps: int, config=CONFIG):
        built = sft_trainer(
            folder,
            peft=lora() if with_lora else None,
            max_steps=steps,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            save_strategy="steps",
            save_steps=2,
            learning_rate=5e-3,
        )
        return pact.attach(built, config)

    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    trainer(tmp_path / "cut", 2).train()
    resumed = trainer(tmp_path / "cut", 4)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, atol=1e-6, rtol=1e-5)
    ours, theirs = (train_logs(t)[-1][METRIC] for t in (resumed, whole))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert "3 anchors" in verify_run(tmp_path / "cut")
    counted = [Receipt.read(tmp_path / name) for name in ("cut", "whole")]
    assert counted[0].trained_tokens == counted[1].trained_tokens
    assert counted[0].mean_anchor_divergence == pytest.approx(counted[1].mean_anchor_divergence, rel=1e-4)
    with pytest.raises(ReceiptError, match="constrained differently: anchors was 3"):
        trainer(tmp_path / "cut", 6, CONFIG.model_copy(update={"anchors": 2})).train(True)
