"""FSDP's first version is refused, before parameters are asked for that are not there; and a copy under its second.

Accelerate knows no FSDP on a CPU.
"""

from __future__ import annotations

import pytest
import torch
from both import CONFIG, each_trainer
from hf import hf_trainer, tokenized
from loop import TOKENIZER, a_batch
from sft import TOKENS
from tiny import tiny_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ModelStructureError, ReferenceModelError

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


def test_a_model_that_was_sharded_as_it_was_loaded_cannot_be_copied(tmp_path, one_rank):
    """Transformers' `distributed_config` shards it; the trainer's own settings say nothing of it."""
    model = tiny_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    trainer = hf_trainer(tmp_path, model=model, data=tokenized(8).to_iterable_dataset(), max_steps=2)
    with pytest.raises(
        ReferenceModelError, match=r"no length, and a copy .* sharded.* text data of known length"
    ):
        pact.attach(trainer, {"safety_tokens": TOKENS, "anchors": False})
