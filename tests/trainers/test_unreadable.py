"""DeepSpeed's third stage and FSDP's first version are refused, before parameters are asked for that are not there.

The refusals look at the `ds_id` that DeepSpeed gives to a parameter which it partitions, at its configuration as
accelerate reads it, and at FSDP's own module. Accelerate knows no FSDP on a CPU.
"""

from __future__ import annotations

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from both import CONFIG, each_kind, each_trainer
from loop import TOKENIZER, a_batch
from sft import TOKENS
from tiny import tiny_model
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

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


FLAT = r"^fsdp: FSDP's first version .*`fsdp_version: 2`"


@pytest.fixture
def one_rank(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_model_in_the_first_fsdp_is_refused(one_rank):
    model, batch = tiny_model(), a_batch()
    constraint = pact.PactConstraint(model, TOKENIZER, pact.PactConfig(safety_tokens=TOKENS, anchors=False))
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = FullyShardedDataParallel(layer, device_id=torch.device("cpu"))
    for build in (
        lambda: constraint.ahead(batch),
        lambda: constraint.loss(batch),
        lambda: pact.PactConstraint(model, TOKENIZER, pact.PactConfig(safety_tokens=TOKENS)),
    ):
        with pytest.raises(ModelStructureError, match=FLAT):
            build()


@each_trainer
def test_a_trainer_with_the_first_fsdp_is_refused(tmp_path, build):
    trainer = build(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(AdapterError, match=FLAT):
        pact.attach(trainer, CONFIG)
