"""DeepSpeed's third stage is refused, before it is asked for parameters that are not there.

DeepSpeed is not installed here: the refusals look at the `ds_id` that it gives to a parameter which it partitions, and
at its configuration as accelerate reads it.
"""

from __future__ import annotations

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from hf import adapted, hf_trainer
from sft import TOKENS
from test_constraint import TOKENIZER, a_batch
from tiny import tiny_model
from transformers import Trainer

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
    config = pact.PactConfig(safety_tokens=TOKENS, reference="stored", store=str(tmp_path))
    constraint = pact.PactConstraint(model, TOKENIZER, config)
    with constraint.watch(batch):
        model(**batch)
    partition(model)
    with pytest.raises(ModelStructureError, match=REFUSED):
        constraint.loss(batch)
    with pytest.raises(ModelStructureError, match=REFUSED):
        constraint.fill([batch])


@pytest.mark.parametrize("reference", ["auto", "stored", "frozen_copy"])
@pytest.mark.parametrize("with_lora", [False, True])
def test_a_trainer_is_refused_whatever_the_reference(tmp_path, reference, with_lora):
    trainer = hf_trainer(tmp_path, model=adapted() if with_lora else tiny_model())
    config = pact.PactConfig(safety_tokens=TOKENS, reference=reference)
    trainer.args.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(AdapterError, match=REFUSED):
        pact.attach(trainer, config)
    assert type(trainer) is Trainer


def test_the_other_stages_are_not(tmp_path):
    trainer = hf_trainer(tmp_path)
    trainer.args.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 2}})
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS))
    trainer.args.hf_deepspeed_config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(AdapterError, match=REFUSED):
        trainer.train()
