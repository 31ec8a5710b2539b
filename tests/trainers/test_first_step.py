"""What the model divides its loss by is measured in the first step: easing would be too weak beside another."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from both import CONFIG, each_trainer
from hf import adapted, hf_trainer
from peft import AdaLoraConfig, get_peft_model
from sft import TOKENS, sft_trainer, train_logs
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.errors import AdapterError
from pact_plugin.run.verify import verify_run

EASED = pact.PactConfig(safety_tokens=TOKENS, anchors=False)


def ignoring(model: Any = None) -> Any:
    """A model that takes any argument, and divides by its own tokens whatever the trainer names."""
    model = model or tiny_model()
    forward = model.forward

    def own(*args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    model.forward = own
    return model


def run(tmp_path: Any, config: pact.PactConfig = EASED, **settings: Any) -> Any:
    settings = {"per_device_train_batch_size": 2, "remove_unused_columns": False} | settings
    trainer = pact.attach(hf_trainer(tmp_path, **settings), config)
    trainer.train()
    return trainer


def test_a_model_that_ignores_the_denominator_stops_before_the_first_step(tmp_path):
    model = ignoring()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(AdapterError, match=r"divided by \d+ tokens.*num_items_in_batch=\d+.*easing: false"):
        run(tmp_path, model=model, gradient_accumulation_steps=2)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_alone_in_its_step_it_has_the_same_denominator(tmp_path):
    assert run(tmp_path, model=ignoring()).pact.record.receipt.steps == [[1, 3]]


def test_without_easing_nothing_is_measured(tmp_path):
    config = pact.PactConfig(safety_tokens=TOKENS, anchors=False, easing=False, hold_data=True)
    trainer = run(tmp_path, config, model=ignoring(), gradient_accumulation_steps=2)
    assert trainer.pact.record.receipt.steps == [[1, 3]]


def test_another_loss_of_the_models_own_stops(tmp_path):
    model = tiny_model()
    stock = model.loss_function
    model.loss_function = lambda *args, **kwargs: 1.5 * stock(*args, **kwargs)
    with pytest.raises(AdapterError, match=r"is not the cross-entropy of its labels.*easing: false"):
        run(tmp_path, model=model)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": adapted()},
        {"model": tiny_model("gpt2")},
        {
            "model": tiny_model(num_hidden_layers=1),
            "torch_compile": True,
            "torch_compile_backend": "eager",
        },
        {"bf16": True},
        {"average_tokens_across_devices": False},
    ],
    ids=["lora", "gpt2", "compiled", "bf16", "per-device"],
)
def test_a_loss_that_is_as_it_should_be_passes(tmp_path, settings):
    trainer = run(tmp_path, gradient_accumulation_steps=2, **settings)
    assert trainer.pact.record.receipt.steps == [[1, 3]]
    assert all("pact/eased" in step for step in train_logs(trainer))


def test_the_loss_of_routers_is_no_cross_entropy(tmp_path):
    model = tiny_model("mixtral", router_aux_loss_coef=0.5, output_router_logits=True)
    trainer = run(tmp_path, model=model, gradient_accumulation_steps=2)
    assert model.config.output_router_logits
    assert trainer.pact.record.receipt.steps == [[1, 3]]


@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])
@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_trl_turns_the_loss_of_routers_on(tmp_path, loss_type, coefficient):
    model = tiny_model("mixtral", router_aux_loss_coef=0.25)
    named = {} if coefficient is None else {"router_aux_loss_coef": coefficient}
    trainer = pact.attach(sft_trainer(tmp_path, model=model, loss_type=loss_type, **named), EASED)
    trainer.train()
    assert all("aux_loss" in step and "pact/eased" in step for step in train_logs(trainer))


def test_nothing_is_left_on_the_model(tmp_path):
    trainer = run(tmp_path)
    modules = [trainer.model, trainer.model.model]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def failing(model: Any, error: BaseException, *, before: int = 0) -> Any:
    """A model whose first forward pass in training raises, or one after so many."""
    forward, calls = model.forward, iter([None] * before + [error])

    @functools.wraps(forward)
    def own(*args: Any, **kwargs: Any) -> Any:
        if model.training and torch.is_grad_enabled():
            one = next(calls, None)
            if one is not None:
                raise one
        return forward(*args, **kwargs)

    model.forward = own
    return model


@each_trainer
@pytest.mark.parametrize("with_lora", [False, True])
def test_a_first_step_that_runs_out_of_memory_is_tried_again(tmp_path, build, with_lora):
    """With smaller batches, whose anchors come before anything else passes through the model."""
    trainer = build(tmp_path, with_lora=with_lora, auto_find_batch_size=True, per_device_train_batch_size=4)
    failing(trainer.model, RuntimeError("CUDA out of memory."))
    pact.attach(trainer, CONFIG).train()
    assert trainer._train_batch_size < 4
    assert trainer.pact.record.receipt.steps == [[1, 3]]
    assert verify_run(tmp_path).startswith("constrained:")


@each_trainer
def test_a_later_step_that_runs_out_of_memory_is_tried_again_from_the_first(tmp_path, build):
    """The steps before count once."""
    trainer = build(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=4, max_steps=4)
    failing(trainer.model, RuntimeError("CUDA out of memory."), before=2)
    pact.attach(trainer, CONFIG).train()
    size = trainer._train_batch_size
    assert size < 4
    receipt = trainer.pact.record.receipt
    assert receipt.steps == [[1, 4]]
    plain = build(tmp_path / "plain", per_device_train_batch_size=size, max_steps=4)
    pact.attach(plain, CONFIG).train()
    assert receipt.trained_tokens == plain.pact.record.receipt.trained_tokens


@each_trainer
def test_an_interrupted_first_step_leaves_nothing_on_the_model(tmp_path, build):
    trainer = build(tmp_path)
    failing(trainer.model, KeyboardInterrupt())
    pact.attach(trainer, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not any(
        one._forward_hooks or one._forward_pre_hooks for one in (trainer.model, trainer.model.model)
    )
    trainer.train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]


def test_the_remedy_works_on_the_same_model(tmp_path):
    model = ignoring()
    with pytest.raises(AdapterError, match="easing: false"):
        run(tmp_path, model=model, gradient_accumulation_steps=2)
    config = pact.PactConfig(safety_tokens=TOKENS, anchors=False, easing=False, hold_data=True)
    trainer = run(tmp_path / "uneased", config, model=model, gradient_accumulation_steps=2)
    assert trainer.pact.record.receipt.steps == [[1, 3]]


@each_trainer
def test_adalora_adds_its_regulariser(tmp_path, build):
    """To the loss of the model's output, which TRL does not train on."""
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", total_step=3, target_modules=["q_proj", "v_proj"], orth_reg_weight=2.0
    )
    trainer = pact.attach(build(tmp_path, model=get_peft_model(tiny_model(), config)), EASED)
    trainer.train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]
    wrong = pact.attach(build(tmp_path, model=get_peft_model(tiny_model(), config)), EASED)
    stock = wrong.model.base_model.model.loss_function
    wrong.model.base_model.model.loss_function = lambda *args, **kwargs: 1.5 * stock(*args, **kwargs)
    if build.__name__ == "of_transformers":
        with pytest.raises(AdapterError, match="is not the cross-entropy of its labels"):
            wrong.train()
