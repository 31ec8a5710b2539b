"""A table where training runs otherwise: checkpointed or compiled; 4 bits are in test_axolotl_qlora.py."""

from __future__ import annotations

import pytest
from loop import FEW_ANCHORS
from sft import TOKENS, lora, sft_trainer, train_logs
from tiny import tiny_model

import pact_plugin as pact

CHECKPOINTING = {"gradient_checkpointing": True}
WAYS = {
    "checkpointed": CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


def logs_of(folder, with_lora: bool, **settings) -> list[dict[str, float]]:
    trainer = sft_trainer(folder, model=tiny_model(), peft=lora() if with_lora else None, **settings)
    config = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, hold_data=True, anchors=FEW_ANCHORS)
    pact.attach(trainer, config).train()
    assert trainer.pact.record.receipt.reference == "table"
    return train_logs(trainer)


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def plain(request, tmp_path_factory):
    """With an adapter or without, and what a run without any of it logs."""
    return request.param, logs_of(tmp_path_factory.mktemp("plain"), request.param)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_the_steps_are_those_of_a_plain_run(tmp_path, plain, way):
    with_lora, expected = plain
    found = logs_of(tmp_path / way, with_lora, **WAYS[way])
    assert len(found) == len(expected) == 3
    # AdamW's first steps are nearly the signs of gradients, some of which rounding turns.
    rounding = 2e-3 if way == "compiled" else 1e-4
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", "pact/loss", "pact/divergence", "pact/anchor_divergence", "pact/eased"):
            assert ours[name] == pytest.approx(theirs[name], rel=rounding, abs=1e-6), name
    assert expected[-1]["pact/divergence"] > 1e-5
