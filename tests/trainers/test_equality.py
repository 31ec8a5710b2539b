"""Both trainers under PACT equal a plain PyTorch loop on full logits, in every loss and weight."""

from __future__ import annotations

from functools import partial

import pytest
import torch
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
from datasets import Dataset
from loop import FEW_ANCHORS
from plain_run import Plain, assert_equal_to_a_plain_loop
from sft import TOKENS, completions, question, train_logs, weights
from tiny import tiny_model

import pact_plugin as pact

POSITIVE = torch.tensor(TOKENS.positive.ids)
FIVE_STEPS = {"max_steps": 5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
# AdamW would blow up the rounding of gradients that are zero but for it, as the anchors' at the first step.
DESCENT = {"optim": "sgd", "learning_rate": 0.1}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "adam_epsilon": 1e-6}
sgd = partial(torch.optim.SGD, lr=0.1)
adam = partial(torch.optim.AdamW, lr=1e-3, eps=1e-6, weight_decay=0.0)


def uneven(rows: int = 16) -> Dataset:
    """Answers of some 3 to 30 tokens, shorter and longer than what is eased; every fifth refuses."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question(i)}],
                "completion": [
                    {
                        "role": "assistant",
                        "content": "Sure, one two yes " * (i % 5) + f"{i}"
                        if i % 5
                        else f"I can't help with {i}.",
                    }
                ],
            }
            for i in range(rows)
        ]
    )


def a_pair(build, folder, config, **settings):
    """A trainer under a constraint, and a second copy of the model that it starts from."""
    trainer = build(folder, **settings)
    twin = build(folder / "plain", **settings).model
    return pact.attach(trainer, config), twin.eval()


# --- `pact: true` ---


@each_kind
@each_trainer
def test_five_steps_of_the_default_equal_a_plain_loop(tmp_path, build, with_lora):
    """Easing by a table, and anchors."""
    config = pact.PactConfig(safety_tokens=TOKENS)
    settings = {"with_lora": with_lora, "data": uneven(), **FIVE_STEPS, **DESCENT}
    trainer, twin = a_pair(build, tmp_path, config, **settings)
    plain = partial(Plain, config, tiny_model(), POSITIVE)
    logs = assert_equal_to_a_plain_loop(trainer, twin, plain, sgd)
    assert trainer.pact.reference.choice.name == "table"
    assert all(0.1 < log["pact/eased"] < 0.9 for log in logs)
    assert logs[-1]["pact/anchor_divergence"] > 1e-5


@each_kind
@each_trainer
def test_without_a_table_nothing_is_rounded(tmp_path, build, with_lora):
    config = pact.PactConfig(safety_tokens=TOKENS, anchors=FEW_ANCHORS)
    settings = {"with_lora": with_lora, "data": uneven(), "eval_strategy": "no", **FIVE_STEPS, **DESCENT}
    trainer, twin = a_pair(build, tmp_path, config, streaming=True, **settings)
    plain = partial(Plain, config, tiny_model(), POSITIVE, stored=False)
    assert_equal_to_a_plain_loop(trainer, twin, plain, sgd)
    assert trainer.pact.reference.choice.name == ("adapter_off" if with_lora else "copy")


# --- other settings ---


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (of_transformers, {"easing": False}),
        (of_transformers, {"easing": {"first": "all"}}),
        (of_trl, {"easing": False}),
        (of_trl, {"easing": {"first": "all"}}),
        (of_trl, {"anchors": {"per_step": 3}}),
    ],
    ids=["transformers-hold", "transformers-easing", "trl-hold", "trl-easing", "trl-anchors"],
)
@each_kind
def test_five_steps_equal_a_plain_loop(tmp_path, build, with_lora, changes):
    config = changed(HELD, **changes, advanced={"chunk_size": 16})
    trainer, twin = a_pair(build, tmp_path, config, with_lora=with_lora, **FIVE_STEPS, **DESCENT)
    logs = assert_equal_to_a_plain_loop(trainer, twin, partial(Plain, config, tiny_model(), POSITIVE), sgd)
    assert logs[-1]["pact/divergence"] > 1e-4


@pytest.mark.parametrize("loss_type", ["nll", "dft", "chunked_nll"])
@each_kind
def test_the_losses_of_sft_with_adam(tmp_path, with_lora, loss_type):
    config = changed(HELD, easing={"first": 3}, hold_data={"first": 4})
    settings = {"loss_type": loss_type, **FIVE_STEPS, **ADAM}
    trainer, twin = a_pair(of_trl, tmp_path, config, with_lora=with_lora, **settings)
    plain = partial(Plain, config, tiny_model(), POSITIVE, dft=loss_type == "dft")
    assert_equal_to_a_plain_loop(trainer, twin, plain, adam, weights_within=5e-5)


@each_kind
def test_a_model_whose_loss_is_a_mean_over_each_micro_batch(tmp_path, with_lora):
    """Then the Trainer averages over the micro-batches, and the constraint must be averaged as the task is."""
    model = tiny_model()
    model.accepts_loss_kwargs = False
    trainer = of_transformers(tmp_path, model=model, with_lora=with_lora, **FIVE_STEPS, **DESCENT)
    twin = of_transformers(tmp_path / "plain", with_lora=with_lora).model
    assert not trainer.model_accepts_loss_kwargs
    pact.attach(trainer, CONFIG)
    plain = partial(Plain, CONFIG, tiny_model(), POSITIVE, per_micro_batch=True)
    assert_equal_to_a_plain_loop(trainer, twin, plain, sgd)


@each_kind
@each_trainer
def test_batch_8_equals_batch_2_accumulated_4_times_in_gradient(tmp_path, build, with_lora):
    def gradient(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        trainer = build(
            tmp_path,
            with_lora=with_lora,
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,  # one step of plain descent moves the weights by the gradient
        )
        with_reference_in_steps(trainer, HELD)  # each micro-batch has other anchors
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


@each_kind
@each_trainer
def test_weight_0_is_plain_training_bit_for_bit(tmp_path, build, with_lora):
    def run(constrained: bool):
        trainer = build(
            tmp_path,
            model=tiny_model(attention_dropout=0.3),
            with_lora=with_lora,
            dropout=0.3,
            data=completions(24),
            gradient_accumulation_steps=2,
        )
        if constrained:
            pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=0, hold_data=True))
        trainer.train()
        return [log["loss"] for log in train_logs(trainer)], weights(trainer), train_logs(trainer)

    plain_losses, plain_weights, _ = run(False)
    losses, final, logs = run(True)
    assert losses == plain_losses
    assert all(torch.equal(final[name], weight) for name, weight in plain_weights.items())
    assert logs[-1]["pact/divergence"] > 0
    assert logs[-1]["pact/loss"] == 0
