"""FSDP's first version is refused, before parameters are asked for that are not there.

Accelerate knows no FSDP on a CPU.
"""

from __future__ import annotations

import pytest
import torch
from both import CONFIG, each_trainer
from loop import TOKENIZER, a_batch
from sft import TOKENS
from tiny import tiny_model
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ModelStructureError

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
