"""A stored reference where training runs otherwise: checkpointed or compiled; 4 bits are in test_axolotl_qlora.py."""

from __future__ import annotations

import pytest
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
    config = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, reference="stored")
    pact.attach(trainer, config).train()
    assert trainer.pact.receipt.reference == "stored"
    return train_logs(trainer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore")
def test_the_steps_are_those_of_a_plain_run(tmp_path, way, with_lora):
    plain = logs_of(tmp_path / "plain", with_lora)
    other = logs_of(tmp_path / way, with_lora, **WAYS[way])
    assert len(plain) == len(other) == 3
    for ours, theirs in zip(other, plain, strict=True):
        for name in ("loss", "pact/divergence", "pact/safety_mass", "pact/eased"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
        assert ours["pact/positions"] == theirs["pact/positions"]
    assert plain[-1]["pact/divergence"] > 1e-5
