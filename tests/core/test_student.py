"""The constraint shares the head of the task's loss: it projects nothing that a plain run would not (clause C6.7)."""

from __future__ import annotations

import pytest
import torch
from hf import adapted as adapted_without_dropout
from hf import hf_trainer
from loop import TOKENIZER, a_batch, moved, settings, without_response
from pact_transformers.label_logprobs import label_logprobs
from sft import TOKENS, lora, sft_trainer
from tiny import tiny_model
from transformers import TrainerCallback
from transformers.loss.loss_utils import ForCausalLMLoss

import pact_plugin as pact
from pact_plugin.model.wrappers import is_compiled
from pact_plugin.terms.base import Step

TERMS = {
    "easing": {},
    "both": {"hold_data": True},
    "hold": {"easing": False, "hold_data": True},
    "first": {"easing": {"first": 2}, "hold_data": {"first": 1}},
}

TOKENS_TRAINED = int((a_batch()["labels"] != -100).sum())


def label_logprobs_of(logits, batch):
    labels = batch["labels"][:, 1:].clamp(min=0)[..., None]
    return logits[:, :-1].log_softmax(-1).gather(2, labels)[..., 0]


def loss_beside_the_task(config, *, temperature=1.0, detached=False):
    """The loss, its gradients and how many positions were projected, with log-probabilities of the labels."""
    model, batch, projected = moved(tiny_model()), a_batch(), []
    constraint = pact.PactConstraint(model, TOKENIZER, config)
    moved(model)
    with constraint.watch():
        output = model(**batch)
    given = label_logprobs_of(output.logits / temperature, batch)
    if detached:
        given = given.detach()
    handle = model.lm_head.register_forward_hook(lambda m, a, out: projected.append(out.shape[0]))
    loss = constraint.loss(batch, label_logprobs=given)
    handle.remove()
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return loss, gradients, sum(projected)


@pytest.mark.parametrize("terms", TERMS)
def test_beside_the_task_loss_the_head_is_read_only_once_to_compare(terms):
    config = settings(weight=2.0, **TERMS[terms])
    loss, gradients, projected = loss_beside_the_task(config)
    expected, others, _ = loss_beside_the_task(config, detached=True)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    for ours, own in zip(gradients, others, strict=True):
        torch.testing.assert_close(ours, own, atol=1e-6, rtol=1e-4)
    responses = 4
    of_reference, compared = {
        "easing": (0, TOKENS_TRAINED),
        "both": (TOKENS_TRAINED, TOKENS_TRAINED),
        "hold": (TOKENS_TRAINED, TOKENS_TRAINED),
        "first": (responses, 2 * responses),
    }[terms]
    assert projected == of_reference + compared + 1  # one more of the first batch's comparison, for its type


def test_log_probs_at_another_temperature_are_not_used(caplog):
    config = settings(weight=2.0, hold_data=True)
    loss, gradients, _ = loss_beside_the_task(config, temperature=0.8)
    assert "another temperature" in caplog.text
    expected, others, _ = loss_beside_the_task(config, detached=True)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_a_batch_of_prompts_alone_is_compared_later(caplog):
    """The first batch has nothing to compare with."""
    model, batch = tiny_model(), a_batch()
    constraint = pact.PactConstraint(model, TOKENIZER, settings(hold_data=True))
    for number, one in enumerate((without_response(batch), batch), 1):
        with constraint.watch():
            logits = model(input_ids=one["input_ids"]).logits
        assert "another temperature" not in caplog.text
        loss = constraint.loss(one, Step(number), label_logprobs=label_logprobs_of(logits / 0.8, one))
    assert loss.requires_grad
    assert "another temperature" in caplog.text


# --- in the trainers ---


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
    model = adapted_without_dropout(tiny_model(), lora_dropout=0.0) if with_lora else tiny_model()
    return hf_trainer(output, model=model)


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
    config = pact.PactConfig(safety_tokens=TOKENS, anchors=False, hold_data=True)
    constrained = projected(config)
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
    wanted = label_logprobs_of(output.logits, batch) * (batch["labels"][:, 1:] != -100)
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
