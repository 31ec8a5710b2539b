"""SFTTrainer under PACT equals a plain PyTorch loop on full logits, in every loss and weight."""

from __future__ import annotations

import pytest
import torch
from sft import TOKENS, completions, lora, sft_trainer, train_logs, weights
from tiny import tiny_model

import pact_plugin as pact

POSITIVE = torch.tensor(TOKENS.positive.ids)


class Recording:
    """The trainer's own collator, keeping what it made."""

    def __init__(self, collator) -> None:
        self.collator, self.batches = collator, []

    def __call__(self, examples):
        batch = self.collator(examples)
        self.batches.append({key: value.clone() for key, value in batch.items() if torch.is_tensor(value)})
        return batch


def plain_step_loss(
    model, aligned, micro_batches, *, weight: float, easing: bool, loss_type: str, first_n: int | str = 16
) -> torch.Tensor:
    """Task loss plus constraint over one optimiser step, from full logits and the formulas alone."""
    count = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
    total = torch.zeros(())
    for batch in micro_batches:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        labels = batch["labels"][:, 1:]
        where = labels != -100
        student = model(**inputs).logits[:, :-1].log_softmax(-1)[where]
        with torch.no_grad():
            reference = aligned(**inputs).logits[:, :-1].log_softmax(-1)[where]
        label = labels[where]
        logprob = student.gather(1, label[:, None])[:, 0]
        task = -logprob if loss_type == "nll" else -logprob * logprob.detach().exp()
        p_ref, p = reference[:, POSITIVE].exp(), student[:, POSITIVE].exp()
        r_ref, r = 1 - p_ref.sum(1), 1 - p.sum(1)
        looked_at = torch.ones_like(label, dtype=torch.bool)
        if first_n != "all":
            looked_at = (where.cumsum(1) - 1)[where] < first_n  # every row has one response
        if easing:
            task = task * torch.where(torch.isin(label, POSITIVE) | ~looked_at, 1.0, r_ref)
        divergence = looked_at * ((p_ref * (p_ref / p).log()).sum(1) + r_ref * (r_ref / r).log())
        total = total + (task.sum() + weight * divergence.sum()) / count
    return total


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize(("easing", "first_n"), [(False, "all"), (True, "all"), (True, 3)])
def test_five_steps_equal_a_plain_loop(tmp_path, loss_type, with_lora, easing, first_n):
    settings = {"max_steps": 5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    settings |= {"loss_type": loss_type, "optim": "adamw_torch", "weight_decay": 0.0}
    settings["adam_epsilon"] = 1e-6  # above the rounding of gradients, which AdamW would blow up
    peft = lora() if with_lora else None
    trainer = sft_trainer(tmp_path, peft=peft, **settings)
    plain = sft_trainer(tmp_path, peft=peft, **settings).model
    for a, b in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    trainer.data_collator = recording = Recording(trainer.data_collator)
    exact = {"easing": easing, "chunk_size": 16, "reference": "frozen_copy", "anchors": 0}
    exact["first_n"] = first_n
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=2.0, **exact))
    trainer.train()

    aligned = tiny_model()
    optimizer = torch.optim.AdamW(
        [p for p in plain.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0, eps=1e-6
    )
    plain.train()
    logs = train_logs(trainer)
    assert len(logs) == 5
    for step, log in enumerate(logs):
        micro_batches = recording.batches[2 * step : 2 * step + 2]
        loss = plain_step_loss(
            plain, aligned, micro_batches, weight=2.0, easing=easing, loss_type=loss_type, first_n=first_n
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert log["loss"] == pytest.approx(loss.item(), abs=1e-5)
    final = weights(trainer)
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            # Adam divides gradients by their size: rounding at a tiny one moves a weight by a part of the rate.
            torch.testing.assert_close(final[name], parameter.detach(), atol=5e-5, rtol=1e-5)
    moved = any(not torch.equal(final[n], p) for n, p in tiny_model().named_parameters() if n in final)
    assert moved or with_lora


@pytest.mark.parametrize("with_lora", [False, True])
def test_batch_8_equals_batch_2_accumulated_4_times_in_gradient(tmp_path, with_lora):
    exact = {"reference": "frozen_copy", "anchors": 0}  # each micro-batch has other anchors

    def gradient(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        trainer = sft_trainer(
            tmp_path,
            peft=lora() if with_lora else None,
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,  # one step of plain descent moves the weights by the gradient
        )
        pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=2.0, **exact))
        # Away from the reference, where the constraint has a gradient.
        scale = 0.1 if with_lora else 0.02
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter += scale * torch.randn(parameter.shape, generator=generator)
        before = weights(trainer)
        trainer.train()
        assert train_logs(trainer)[0]["pact/divergence"] > 1e-3
        return {name: before[name] - after for name, after in weights(trainer).items()}

    whole, split = gradient(8, 1), gradient(2, 4)
    assert max(g.abs().max() for g in whole.values()) > 1e-2
    for name, expected in whole.items():
        torch.testing.assert_close(split[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_lora", [False, True])
def test_weight_0_is_plain_sft_bit_for_bit(tmp_path, with_lora):
    def run(constrained: bool):
        trainer = sft_trainer(
            tmp_path,
            model=tiny_model(attention_dropout=0.3),
            peft=lora(lora_dropout=0.3) if with_lora else None,
            data=completions(24),
            gradient_accumulation_steps=2,
        )
        if constrained:
            pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=0))
        trainer.train()
        return [log["loss"] for log in train_logs(trainer)], weights(trainer), train_logs(trainer)

    plain_losses, plain_weights, _ = run(False)
    losses, final, logs = run(True)
    assert losses == plain_losses
    assert all(torch.equal(final[name], weight) for name, weight in plain_weights.items())
    assert logs[-1]["pact/divergence"] > 0
    assert logs[-1]["pact/loss"] == 0
