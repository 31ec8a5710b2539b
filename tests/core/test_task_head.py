"""The constraint shares the head of the trainers' own losses: it projects nothing that a plain run would not."""

from __future__ import annotations

import copy

import pytest
import torch
from hf import adapted, hf_trainer
from pact_transformers.label_logprobs import label_logprobs
from sft import TOKENS, completions, lora, sft_trainer
from test_constraint import a_batch
from tiny import tiny_model
from transformers import TrainerCallback
from transformers.loss.loss_utils import ForCausalLMLoss

import pact_plugin as pact
from pact_plugin.model.wrappers import is_compiled


class Projected(TrainerCallback):
    """Counts the positions that go through the head's module in each step."""

    def __init__(self, trainer) -> None:
        self.steps: list[int] = []
        head = trainer.model.get_output_embeddings()
        head.register_forward_hook(lambda module, args, output: self._add(output))
        trainer.add_callback(self)

    def _add(self, output) -> None:
        if self.steps:
            self.steps[-1] += output.shape[:-1].numel()

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append(0)


def of_trl(output, with_lora):
    return sft_trainer(output, peft=lora() if with_lora else None)


def of_transformers(output, with_lora):
    return hf_trainer(output, model=adapted(tiny_model(), lora_dropout=0.0) if with_lora else tiny_model())


@pytest.mark.parametrize("make", [of_trl, of_transformers])
@pytest.mark.parametrize("with_lora", [False, True])
def test_a_step_projects_what_a_plain_one_does(tmp_path, make, with_lora):
    def projected(config) -> list[int]:
        trainer = make(tmp_path / "run", with_lora)
        if config is not None:
            pact.attach(trainer, config)
        counter = Projected(trainer)
        trainer.train()
        return counter.steps

    plain = projected(None)
    settings = {"safety_tokens": TOKENS, "reference": "stored", "store": tmp_path / "store", "anchors": 0}
    constrained = projected(pact.PactConfig(**settings))
    assert len(plain) == 3
    assert constrained[0] > plain[0]  # compared, once
    assert constrained[1:] == plain[1:]


@pytest.mark.parametrize("count", [None, 7, torch.tensor(7)])
def test_the_models_loss_stays_what_it_is_and_is_put_back(count):
    model, batch = tiny_model(), a_batch()
    expected = model(**batch, num_items_in_batch=count).loss
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    with label_logprobs(model) as task:
        output = model(**batch, num_items_in_batch=count)
    torch.testing.assert_close(output.loss, expected)
    for ours, plain in zip(
        torch.autograd.grad(output.loss, list(model.parameters()), retain_graph=True), gradients, strict=True
    ):
        torch.testing.assert_close(ours, plain)
    labels = batch["labels"][:, 1:]
    logprobs = output.logits[:, :-1].log_softmax(-1)
    wanted = logprobs.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    torch.testing.assert_close(task.value, wanted)
    assert model.loss_function is ForCausalLMLoss
    assert "_loss_function" not in vars(model)


def test_a_loss_of_the_users_own_is_left_alone():
    model = tiny_model()
    model.loss_function = own = lambda logits, labels, **kwargs: logits.sum() * 0 + 3
    with label_logprobs(model) as task:
        assert model(**a_batch()).loss.item() == 3
    assert task.value is None
    assert model.loss_function is own


def test_nothing_is_put_into_a_compiled_model():
    compiled = torch.compile(tiny_model(), backend="eager")
    in_place = tiny_model()
    in_place.compile(backend="eager")
    for model in (compiled, in_place, torch.nn.Sequential()):
        assert is_compiled(model) == (model is compiled or model is in_place)
    with label_logprobs(compiled) as task:
        assert compiled._orig_mod.loss_function is ForCausalLMLoss
        compiled(**a_batch())
    assert task.value is None


def test_a_batch_of_prompts_alone_is_compared_later(tmp_path):
    """The first batch has nothing to compare with."""
    trainer = sft_trainer(tmp_path, data=completions(4), max_steps=1)
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, reference="frozen_copy", anchors=0))
    batch = a_batch()
    empty = copy.deepcopy(batch)
    empty["labels"][:] = -100
    constraint = trainer.pact
    for one in (empty, batch):
        with constraint.watch():
            logits = trainer.model(input_ids=one["input_ids"]).logits
        given = logits[:, :-1].log_softmax(-1).gather(2, one["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
        loss = constraint.loss(one, label_logprobs=given, empty_ok=True)
        assert torch.isfinite(loss)
    assert loss.requires_grad
