"""In which runs a trainer makes the anchors' gradient before the forward pass of the batch."""

from __future__ import annotations

import pytest
import torch
from both import CONFIG, each_trainer, of_transformers
from pact_transformers.ahead import goes_ahead
from sft import TOKENS

import pact_plugin as pact


def order_of_a_step(trainer) -> list[str]:
    """`forward` of the decoder with gradient, and `backward`, as they come in the first step."""
    found: list[str] = []

    def forward(module, *call) -> None:
        found.append("forward")
        call[-1].last_hidden_state.register_hook(lambda _: found.append("backward"))

    base = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    handle = base.model.register_forward_hook(
        lambda module, *call: forward(module, *call) if torch.is_grad_enabled() else None
    )
    trainer.train()
    handle.remove()
    return found


APART, TOGETHER = ["forward", "backward"] * 2, ["forward"] * 2 + ["backward"] * 2


@each_trainer
@pytest.mark.parametrize(
    ("with_lora", "settings", "expected"),
    [
        (True, {}, APART),
        (True, {"gradient_checkpointing": True}, APART),
        (False, {}, APART),
        (False, {"gradient_checkpointing": True}, APART),
    ],
)
def test_the_two_passes_are_apart(tmp_path, build, with_lora, settings, expected):
    trainer = build(tmp_path, with_lora=with_lora, max_steps=1, **settings)
    pact.attach(trainer, CONFIG)
    assert order_of_a_step(trainer) == expected


@each_trainer
def test_an_optimiser_that_acts_on_each_gradient_at_once_gets_one(tmp_path, build):
    """As layer-wise optimisers do: a second gradient would be a second step."""
    trainer = build(tmp_path, with_lora=True, max_steps=1)
    pact.attach(trainer, CONFIG)
    acted = []
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: acted.append(name))
    assert order_of_a_step(trainer) == TOGETHER
    assert len(acted) == len(set(acted)) > 0


def test_nor_one_that_steps_in_the_backward_pass(tmp_path):
    trainer = of_transformers(tmp_path, with_lora=True)
    assert goes_ahead(trainer)
    trainer.args.optim = "lomo"  # needs a package of its own
    assert not goes_ahead(trainer)


@each_trainer
@pytest.mark.parametrize("changes", [{"weight": 0}, {"anchors": False}])
def test_without_anchors_there_is_one_pass(tmp_path, build, changes):
    trainer = build(tmp_path, with_lora=True, max_steps=1)
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, **changes))
    assert order_of_a_step(trainer) == ["forward", "backward"]
