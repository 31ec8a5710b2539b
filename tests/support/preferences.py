"""Small preference runs of the real DPOTrainer and KTOTrainer, and each of their steps again by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from both import Recording
from datasets import Dataset
from loop import FEW_ANCHORS, anchors_of
from peft import LoraConfig, get_peft_model
from plain import anchor_divergence
from sft import ON_A_CPU, TOKENIZER, TOKENS, question, train_logs, weights
from tiny import tiny_model
from torch import Tensor
from torch.nn import functional as F
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

import pact_plugin as pact

Batch = dict[str, Tensor]

CONFIG = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, anchors=FEW_ANCHORS)
"""The default but for the safety tokens, few anchors and their weight."""
BETA = 0.1
RATE = 0.1
DESCENT = {"optim": "sgd", "learning_rate": RATE}
FIVE_STEPS = {"max_steps": 5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, **DESCENT}


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs(rows: int = 16) -> Dataset:
    """Prompts with a preferred and another answer, of varying length."""
    return Dataset.from_list(
        [
            {
                "prompt": _turn("user", question(i)),
                "chosen": _turn("assistant", "Sure, here is " + "one two " * (i % 4)),
                "rejected": _turn("assistant", "I can't help with that." + " no" * (i % 3)),
            }
            for i in range(rows)
        ]
    )


def judged(rows: int = 16) -> Dataset:
    """Prompts with one answer, which is wanted in every other row."""
    return Dataset.from_list(
        [
            {
                "prompt": _turn("user", question(i)),
                "completion": _turn("assistant", ("Sure, one two", "I can't")[i % 2] + " three" * (i % 3)),
                "label": i % 2 == 0,
            }
            for i in range(rows)
        ]
    )


def _built(kind: tuple[type, type, Callable[[int], Dataset]], output: Any, given: dict[str, Any]) -> Any:
    trainer_class, config_class, data_of = kind
    data, peft, model = data_of(given.pop("rows", 16)), given.pop("peft", None), given.pop("model", None)
    streaming = given.pop("streaming", False)
    reference = given.pop("ref_model", None)
    adapted = peft is not None or hasattr(model, "peft_config")
    if reference is None and not adapted and not given.get("precompute_ref_log_probs"):
        reference = tiny_model()  # TRL would load it from the model's folder
    torch.manual_seed(0)
    return trainer_class(
        model=tiny_model() if model is None else model,
        ref_model=reference,
        args=config_class(**({"output_dir": str(output)} | ON_A_CPU | given)),
        train_dataset=data.to_iterable_dataset() if streaming else data,
        eval_dataset=data,
        processing_class=TOKENIZER,
        peft_config=peft,
    )


def dpo_trainer(output: Any, **settings: Any) -> DPOTrainer:
    """A DPOTrainer on the CPU that logs every step.

    Args:
        output: Its output folder.
        **settings: `model`, `ref_model`, `peft`, `rows`, `streaming`, `trainer_class` and `config_class`; all others go
            to the last.
    """
    classes = settings.pop("trainer_class", DPOTrainer), settings.pop("config_class", DPOConfig)
    return _built((*classes, pairs), output, {"beta": BETA} | settings)


def kto_trainer(output: Any, **settings: Any) -> KTOTrainer:
    """A KTOTrainer; see `dpo_trainer`."""
    return _built((KTOTrainer, KTOConfig, judged), output, settings)


def dpo_loss(model: Any, batch: Batch, *, reference: Any) -> Tensor:
    """The mean of -log σ(β · (log-ratio of the chosen answer - that of the rejected)), from full logits."""

    def logprobs(any_model: Any) -> Tensor:
        """[2 B] of each whole answer."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = any_model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        own = logits.gather(-1, ids[:, 1:, None])[..., 0]
        return (own * batch["completion_mask"][:, 1:]).sum(1)

    with torch.no_grad():
        aligned = logprobs(reference)
    chosen, rejected = (logprobs(model) - aligned).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


@dataclass(frozen=True)
class PlainPreferences:
    """The loss of an optimiser step by the formulas.

    Args:
        task: (model, batch) -> the task's loss of a micro-batch.
        weight: Of the anchors.
        aligned: The model as it was before its first step.
        anchors: The term of the constrained trainer, which says whose turn it is.
    """

    task: Callable[[Any, Batch], Tensor]
    weight: float
    aligned: Any
    anchors: Any

    def step(self, model: Any, ranks: Sequence[Sequence[Batch]], number: int) -> tuple[Tensor, float]:
        """Of the micro-batches of each rank: the loss with gradient, and the anchors' divergence in it."""
        losses, divergences = [], []
        for rank, batches in enumerate(ranks):
            for micro_batch, batch in enumerate(batches):
                chosen = self.anchors.schedule.chosen(number, micro_batch, rank, len(batches))
                safety = torch.tensor(TOKENS.positive.ids)
                divergences.append(anchor_divergence(model, self.aligned, self.anchors, chosen, safety))
                losses.append(self.task(model, batch))
        divergence = torch.stack(divergences).mean()
        return torch.stack(losses).mean() + self.weight * divergence, divergence.item()


def lora_of_dpo(**settings: Any) -> LoraConfig:
    """TRL refuses an adapter of the head here."""
    return LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings))


def twin(trainer: Any) -> Any:
    """A second model with the same weights, whose forward pass TRL has not replaced."""
    model = tiny_model()
    if hasattr(trainer.model, "peft_config"):
        model = get_peft_model(model, lora_of_dpo())
    own = {name: value for name, value in trainer.model.state_dict().items() if ".ref." not in name}
    model.load_state_dict(own)
    return model.eval()


def assert_equal_to_a_plain_loop(
    trainer: Any, task: Any, *, weight: float = CONFIG.weight, sizes: Sequence[int] = (2,) * 5
) -> list[dict[str, float]]:
    """Train with `DESCENT`, then train again by hand on the batches that the trainer was given; its logs.

    Args:
        trainer: Constrained, and not yet trained.
        task: (model, batch) -> loss of a micro-batch.
        weight: Of the anchors.
        sizes: Micro-batches of each step.
    """
    model = twin(trainer)
    plain = PlainPreferences(task, weight, twin(trainer), anchors_of(trainer.pact))
    start, recording = weights(trainer), Recording(trainer)
    trainer.train()
    logs, batches = train_logs(trainer), iter(recording.batches)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    stepper = torch.optim.SGD(trained.values(), lr=RATE)
    assert len(logs) == len(sizes)
    tokens = 0
    for step, (log, size) in enumerate(zip(logs, sizes, strict=True), 1):
        own = [next(batches) for _ in range(size)]
        tokens += sum(int(batch["completion_mask"][:, 1:].sum()) for batch in own)
        loss, divergence = plain.step(model, [own], step)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        assert log["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert log["pact/anchor_divergence"] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
        assert log["pact/loss"] == pytest.approx(weight * divergence, rel=1e-3, abs=2e-6)
    assert trainer.pact.record.receipt.trained_tokens == tokens > 0
    final = weights(trainer)
    for name, parameter in trained.items():
        torch.testing.assert_close(final[name], parameter.detach(), atol=1e-5, rtol=1e-5)
    assert max((final[name] - start[name]).abs().max() for name in final) > 1e-3
    assert logs[-1]["pact/anchor_divergence"] > 5e-6
    return logs
