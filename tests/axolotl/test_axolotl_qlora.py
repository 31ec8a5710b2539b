"""4-bit weights: QLoRA by `axolotl train`, and what bitsandbytes does to them on some CPUs.

Here rather than beside the tests of the Trainer, because bitsandbytes comes with Axolotl.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from axolotl_runs import LORA, Workshop
from hf import adapted, hf_trainer
from sft import TOKENS, train_logs, weights
from test_axolotl_train import assert_equal_to_plain
from tiny import tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import pact_plugin as pact

NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


INT8 = BitsAndBytesConfig(load_in_8bit=True)


def quantized(folder: Path, how: BitsAndBytesConfig = NF4) -> PreTrainedModel:
    options = {"quantization_config": how, "dtype": torch.float32, "device_map": "cpu"}
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def quantized_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def test_qlora(tmp_path):
    workshop = Workshop(tmp_path)
    run = workshop.train("qlora", dump=True, **(LORA | {"adapter": "qlora", "load_in_4bit": True})).ok()
    assert run.receipt["reference"] == "adapter_off"
    assert "constrained: 3 steps" in run.verify().stdout

    def without_repacking(folder: Path) -> PreTrainedModel:
        model = quantized(folder)
        for layer in quantized_layers(model):
            layer.support_avx512bf16_for_cpu = False
        return model

    assert_equal_to_plain(workshop, run, 1, load=without_repacking)


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_model(hidden_size=64, head_dim=16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_reference_leaves_the_gradients_of_4_bit_weights_right(tmp_path, folder):
    """Weight 0 is the plain Trainer bit for bit.

    On CPUs with avx512_bf16 bitsandbytes repacks the weights in a forward pass without training, as the
    reference's is, and gradients are wrong from then on (seen: a norm of 0.48 in place of 2.62).
    """

    def run(constrained: bool):
        trainer = hf_trainer(tmp_path, model=adapted(quantized(folder)))
        if constrained:
            pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=0))
        trainer.train()
        return [(log["loss"], log["grad_norm"]) for log in train_logs(trainer)], weights(trainer)

    (plain, plain_weights), (measured, final) = run(False), run(True)
    assert measured == plain
    assert all(torch.equal(final[name], weight) for name, weight in plain_weights.items())


def test_no_layer_is_left_to_repack_its_weights(tmp_path, folder):
    trainer = hf_trainer(tmp_path, model=adapted(quantized(folder)))
    layers = quantized_layers(trainer.model)
    assert len(layers) == 14  # seven linear layers in each of two blocks
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True  # as on a CPU that has it
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS))
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("how", [NF4, INT8], ids=["4 bit", "8 bit"])
def test_a_stored_reference_of_quantized_weights_is_that_of_the_adapter_switched_off(tmp_path, folder, how):
    def run(reference: str) -> list[dict[str, float]]:
        trainer = hf_trainer(tmp_path / reference, model=adapted(quantized(folder, how)))
        pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, reference=reference)).train()
        return train_logs(trainer)

    for ours, theirs in zip(run("stored"), run("adapter_off"), strict=True):
        for name in ("loss", "pact/divergence", "pact/safety_mass_reference"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-3), name
        assert ours["pact/positions"] == theirs["pact/positions"] > 0
