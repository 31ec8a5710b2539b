"""DeepSpeed's third stage is refused, before it is asked for parameters that are not there.

DeepSpeed is not installed here: the refusals look at the `ds_id` that it gives to a parameter which it partitions, and
at its configuration as accelerate reads it.
"""

from __future__ import annotations

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from both import CONFIG, each_kind, each_trainer
from loop import TOKENIZER, a_batch
from sft import TOKENS
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ModelStructureError

REFUSED = r"^deepspeed: ZeRO stage 3 .*Use ZeRO stage 2, or FSDP2\.$"


def partition(model: torch.nn.Module) -> None:
    """As DeepSpeed does: an empty tensor and an id in place of every parameter."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
        parameter.data = torch.empty(0)


def test_a_partitioned_model_is_refused():
    model = tiny_model()
    partition(model)
    with pytest.raises(ModelStructureError, match=REFUSED):
        pact.PactConstraint(model, TOKENIZER, pact.PactConfig(safety_tokens=TOKENS))


def test_a_model_that_is_partitioned_later_is_refused(tmp_path):
    model, batch = tiny_model(), a_batch()
    config = pact.PactConfig(safety_tokens=TOKENS, anchors=False, advanced={"store": str(tmp_path)})
    constraint = pact.PactConstraint(model, TOKENIZER, config)
    with constraint.watch(batch):
        model(**batch)
    partition(model)
    with pytest.raises(ModelStructureError, match=REFUSED):
        constraint.loss(batch)
    with pytest.raises(ModelStructureError, match=REFUSED):
        constraint.fill([batch])


@each_trainer
@each_kind
def test_a_trainer_is_refused(tmp_path, build, with_lora):
    trainer = build(tmp_path, with_lora=with_lora)
    kind = type(trainer)
    trainer.args.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(AdapterError, match=REFUSED):
        pact.attach(trainer, CONFIG)
    assert type(trainer) is kind


@each_trainer
def test_the_other_stages_are_not(tmp_path, build):
    trainer = build(tmp_path)
    trainer.args.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 2}})
    pact.attach(trainer, CONFIG)
    trainer.args.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(AdapterError, match=REFUSED):
        trainer.train()
