"""The plain Hugging Face Trainer under PACT: equal to a plain PyTorch loop, and never unconstrained in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf import TOKENIZER, adapted, hf_trainer, tokenized
from plain import micro_batch_loss
from sft import TOKENS, train_logs, weights
from test_trl_equality import Recording
from tiny import tiny_model
from transformers import BartConfig, BartForConditionalGeneration, Trainer

import pact_plugin as pact
from pact_plugin.errors import AdapterError, HiddenStatesNotSeenError, ReceiptError
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

CONFIG = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, chunk_size=16)
EXACT = CONFIG.model_copy(update={"reference": "frozen_copy", "anchors": 0})
UNEASED = CONFIG.model_copy(update={"easing": False})
POSITIVE = torch.tensor(TOKENS.positive.ids)
METRICS = {"loss", "divergence", "safety_mass", "safety_mass_reference", "eased", "positions"}

both_kinds = pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])


def a_model(with_lora: bool, **config):
    return adapted(tiny_model(**config), lora_dropout=0.0) if with_lora else tiny_model(**config)


def assert_equal_to_a_plain_loop(trainer, *, easing: bool, per_micro_batch: bool, with_lora: bool) -> None:
    """Train for five steps of two micro-batches, then again by hand on the batches that it was given."""
    trainer.data_collator = recording = Recording(trainer.data_collator)
    pact.attach(trainer, EXACT if easing else EXACT.model_copy(update={"easing": False}))
    trainer.train()

    aligned, model = tiny_model(), a_model(with_lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    logs = train_logs(trainer)
    assert len(logs) == 5
    for step, log in enumerate(logs):
        batches = recording.batches[2 * step : 2 * step + 2]
        count = None if per_micro_batch else sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
        parts = [
            micro_batch_loss(model, aligned, b, POSITIVE, easing=easing, count=count)[0] for b in batches
        ]
        loss = sum(parts) / (2 if per_micro_batch else 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert log["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert logs[-1]["pact/divergence"] > 1e-3
    final = weights(trainer)
    assert len(final) == len(trained)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Adam divides gradients by their size: rounding at a tiny one moves a weight by a part of the rate.
            torch.testing.assert_close(final[name], parameter.detach(), atol=5e-5, rtol=1e-5)


LR = 1e-2
FIVE_STEPS = {
    "max_steps": 5,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 3,
    "learning_rate": LR,
}


@both_kinds
@pytest.mark.parametrize("easing", [False, True])
def test_five_steps_equal_a_plain_loop(tmp_path, with_lora, easing):
    trainer = hf_trainer(tmp_path, model=a_model(with_lora), **FIVE_STEPS)
    assert_equal_to_a_plain_loop(trainer, easing=easing, per_micro_batch=False, with_lora=with_lora)


def test_a_model_whose_loss_is_a_mean_over_each_micro_batch(tmp_path):
    """Then the Trainer averages over the micro-batches, and the constraint must be averaged as the task is."""
    model = tiny_model()
    model.accepts_loss_kwargs = False
    trainer = hf_trainer(tmp_path, model=model, **FIVE_STEPS)
    assert_equal_to_a_plain_loop(trainer, easing=True, per_micro_batch=True, with_lora=False)


@both_kinds
def test_batch_8_equals_batch_2_accumulated_4_times_in_gradient(tmp_path, with_lora):
    def gradient(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        trainer = hf_trainer(
            tmp_path,
            model=a_model(with_lora),
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,  # one step of plain descent moves the weights by the gradient
        )
        pact.attach(trainer, EXACT)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # away from the reference, where the constraint has a gradient
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += (0.1 if with_lora else 0.02) * noise
        before = weights(trainer)
        trainer.train()
        assert train_logs(trainer)[0]["pact/divergence"] > 1e-3
        return {name: before[name] - after for name, after in weights(trainer).items()}

    whole, split = gradient(8, 1), gradient(2, 4)
    assert max(g.abs().max() for g in whole.values()) > 1e-2
    for name, expected in whole.items():
        torch.testing.assert_close(split[name], expected, atol=1e-5, rtol=1e-5)


@both_kinds
def test_weight_0_is_the_plain_trainer_bit_for_bit(tmp_path, with_lora):
    def run(constrained: bool) -> tuple[list[float], dict[str, torch.Tensor], list[dict[str, float]]]:
        model = a_model(with_lora, attention_dropout=0.3)
        trainer = hf_trainer(tmp_path, model=model, data=tokenized(24), gradient_accumulation_steps=2)
        if constrained:
            pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=0))
        trainer.train()
        logs = train_logs(trainer)
        return [log["loss"] for log in logs], weights(trainer), logs

    plain_losses, plain_weights, _ = run(False)
    losses, final, logs = run(True)
    assert losses == plain_losses
    assert all(torch.equal(final[name], weight) for name, weight in plain_weights.items())
    assert logs[-1]["pact/divergence"] > 0
    assert logs[-1]["pact/loss"] == 0


# --- metrics and evaluation ---


def test_metrics_are_means_over_the_positions_since_the_last_log(tmp_path):
    every = pact.attach(hf_trainer(tmp_path, max_steps=4, gradient_accumulation_steps=2), CONFIG)
    every.train()
    second = pact.attach(
        hf_trainer(tmp_path, max_steps=4, gradient_accumulation_steps=2, logging_steps=2), CONFIG
    )
    second.train()
    steps, pairs = train_logs(every), train_logs(second)
    assert (len(steps), len(pairs)) == (4, 2)
    for pair, one, two in zip(pairs, steps[::2], steps[1::2], strict=True):
        assert {f"pact/{name}" for name in METRICS} <= set(pair)
        positions = one["pact/positions"] + two["pact/positions"]
        assert pair["pact/positions"] == positions > 0
        for name in METRICS - {"positions"}:
            total = sum(log[f"pact/{name}"] * log["pact/positions"] for log in (one, two))
            assert pair[f"pact/{name}"] == pytest.approx(total / positions, rel=1e-4, abs=1e-9)


def test_the_evaluation_loss_stays_the_tasks(tmp_path):
    trainer = hf_trainer(tmp_path)
    plain = trainer.evaluate()["eval_loss"]
    pact.attach(trainer, CONFIG)
    before = trainer.evaluate()
    assert before["eval_loss"] == plain
    assert trainer.pact.receipt.reference == "stored"
    assert {f"eval_pact/{name}" for name in METRICS if name != "loss"} <= set(before)
    assert before["eval_pact/divergence"] == pytest.approx(0, abs=1e-9)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_pact/divergence"] > 1e-5
    unconstrained = hf_trainer(tmp_path, model=trainer.model).evaluate()
    assert after["eval_loss"] == unconstrained["eval_loss"]
    assert trainer.predict(trainer.eval_dataset).metrics["test_pact/positions"] > 0


# --- the receipt ---


@both_kinds
def test_an_interrupted_run_resumes_as_one(tmp_path, with_lora):
    def trainer(folder: Path, steps: int) -> Trainer:
        saving = {"save_strategy": "steps", "save_steps": 2}
        return pact.attach(hf_trainer(folder, model=a_model(with_lora), max_steps=steps, **saving), CONFIG)

    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    trainer(tmp_path / "cut", 2).train()
    resumed = trainer(tmp_path / "cut", 4)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, atol=1e-6, rtol=1e-5)
    assert resumed.pact.receipt.steps == [[1, 4]]
    assert Receipt.read(tmp_path / "cut").positions == Receipt.read(tmp_path / "whole").positions > 0
    for folder in ("checkpoint-2", "checkpoint-4", "."):
        assert verify_run(tmp_path / "cut" / folder).startswith("constrained:")
    assert "4 steps" in verify_run(tmp_path / "cut")
    assert pact.SafetyTokens.load(tmp_path / "cut" / "pact_safety_tokens.safetensors") == TOKENS


def test_a_run_that_goes_on_without_the_constraint_does_not_verify(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    pact.attach(hf_trainer(tmp_path, max_steps=2, **saving), CONFIG).train()
    assert verify_run(tmp_path).startswith("constrained:")
    hf_trainer(tmp_path, max_steps=4, **saving).train(resume_from_checkpoint=True)
    with pytest.raises(ReceiptError, match="steps 3-4 of 4 were not constrained"):
        verify_run(tmp_path)


# --- what must not pass in silence ---


class Weighted(Trainer):
    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)


def summed_logits(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum() * 1e-6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0.1.*easing: false"),
        ({"trainer_settings": {"compute_loss_func": summed_logits}}, r"compute_loss_func.*easing: false"),
        ({"trainer_class": Weighted}, r"compute_loss.*Weighted.*easing: false"),
    ],
    ids=["label smoothing", "compute_loss_func", "subclass"],
)
def test_easing_needs_the_models_own_loss(tmp_path, settings, words):
    trainer = hf_trainer(tmp_path, **settings)
    kind = type(trainer)
    with pytest.raises(AdapterError, match=words):
        pact.attach(trainer, CONFIG)
    assert type(trainer) is kind, "a refused trainer is left as it was"
    pact.attach(trainer, UNEASED).train()
    assert trainer.pact.receipt.steps == [[1, 3]]
    assert train_logs(trainer)[-1]["pact/divergence"] > 0


def test_a_compute_loss_that_never_runs_the_model(tmp_path):
    class Silent(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return sum(p.sum() for p in model.parameters()) * 0.0

    trainer = pact.attach(hf_trainer(tmp_path, trainer_class=Silent), UNEASED)
    with pytest.raises(HiddenStatesNotSeenError, match="not seen in this step"):
        trainer.train()


def test_a_compute_loss_replaced_on_the_trainer(tmp_path):
    trainer = hf_trainer(tmp_path)
    trainer.compute_loss = lambda *args, **kwargs: torch.zeros(())
    with pytest.raises(AdapterError, match="never be called"):
        pact.attach(trainer, CONFIG)


def shard(trainer: Trainer) -> None:
    trainer.is_fsdp_enabled = True  # as where several accelerators are


def test_a_copy_of_sharded_parameters_is_no_reference(tmp_path):
    trainer = hf_trainer(tmp_path)
    shard(trainer)
    with pytest.raises(AdapterError, match=r"^fsdp: .*sharded.*`reference: stored`"):
        pact.attach(trainer, EXACT)
    assert type(trainer) is Trainer
    assert pact.attach(trainer, CONFIG).pact.receipt.reference == "stored"
    adapter = hf_trainer(tmp_path, model=adapted())
    shard(adapter)
    assert pact.attach(adapter, CONFIG).pact.receipt.reference == "adapter_off"

    late = pact.attach(hf_trainer(tmp_path), EXACT)
    shard(late)
    with pytest.raises(AdapterError, match=r"^fsdp: "):
        late.train()


def test_a_trainer_without_a_tokenizer(tmp_path):
    trainer = hf_trainer(tmp_path)
    trainer.processing_class = None
    with pytest.raises(AdapterError, match=r"processing_class=tokenizer"):
        pact.attach(trainer, CONFIG)


def test_an_encoder_decoder_model(tmp_path):
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=len(TOKENIZER), d_model=16, **sizes, **ids)
    with pytest.raises(AdapterError, match=r"BartForConditionalGeneration.*causal language model"):
        pact.attach(hf_trainer(tmp_path, model=BartForConditionalGeneration(config)), CONFIG)
