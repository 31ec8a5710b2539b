"""4-bit weights: QLoRA by `axolotl train`, and what bitsandbytes does to them on some CPUs.

On CPUs with avx512_bf16 it repacks them in the first forward pass without training, and the gradients of training are
wrong from then on (seen: a norm of 0.48 in place of 2.59). The reference must not be that pass. An evaluation is one,
with and without PACT. Here rather than beside the tests of the Trainer, because bitsandbytes comes with Axolotl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from axolotl_runs import LORA, Workshop
from dumped_plain import assert_equal_to_plain
from hf import adapted, hf_trainer, tokenized
from sft import TOKENS, completions, train_logs, weights
from tiny import tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import pact_plugin as pact
from pact_plugin.data.prompts import for_pool

QLORA = LORA | {"adapter": "qlora", "load_in_4bit": True}
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


def without_repacking(folder: Path) -> PreTrainedModel:
    model = quantized(folder)
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False
    return model


def is_repacked(layer: Any) -> bool:
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def test_qlora(tmp_path):
    """The default: the 4-bit model answers the anchors and fills a table."""
    workshop = Workshop(tmp_path)
    run = workshop.train("qlora", dump=True, pact=workshop.named_tokens, **QLORA).ok()
    assert run.receipt["reference"] == "table"
    assert "constrained: 3 steps" in run.verify().stdout
    assert_equal_to_plain(workshop, run, load=without_repacking)


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_model(hidden_size=64, head_dim=16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("evaluations", [{}, {"eval_strategy": "steps", "eval_steps": 2}], ids=["", "eval"])
def test_the_reference_leaves_the_gradients_of_4_bit_weights_as_they_are(tmp_path, folder, evaluations):
    """Weight 0 is the plain Trainer bit for bit."""

    def run(constrained: bool):
        trainer = hf_trainer(tmp_path, model=adapted(quantized(folder)), max_steps=4, **evaluations)
        if constrained:
            pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, weight=0))
        trainer.train()
        return [(log["loss"], log["grad_norm"]) for log in train_logs(trainer)], weights(trainer)

    (plain, plain_weights), (measured, final) = run(False), run(True)
    assert measured == plain
    assert all(torch.equal(final[name], weight) for name, weight in plain_weights.items())


def test_no_weight_is_repacked_and_no_layer_changed(tmp_path, folder):
    trainer = hf_trainer(tmp_path, model=adapted(quantized(folder)))
    layers = quantized_layers(trainer.model)
    assert len(layers) == 14  # seven linear layers in each of two blocks
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True  # as on a CPU that has it
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS))
    trainer.train()
    assert trainer.pact.record.receipt.reference == "table"
    assert not any(map(is_repacked, layers))
    assert all(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("how", [NF4, INT8], ids=["4 bit", "8 bit"])
def test_a_table_of_quantized_weights_is_what_the_adapter_switched_off_gives_in_each_step(
    tmp_path, folder, how
):
    config = pact.PactConfig(safety_tokens=TOKENS, hold_data=True)

    def run(kind: str, data: Any) -> list[dict[str, float]]:
        trainer = hf_trainer(
            tmp_path / kind,
            model=adapted(quantized(folder, how)),
            data=data,
            train_sampling_strategy="sequential",
        )
        pact.attach(trainer, config).train()
        assert trainer.pact.record.receipt.reference == kind
        return train_logs(trainer)

    harmful = [one.prompt for one in for_pool().prompts if one.kind == "harmful"]
    rows = tokenized(
        completions().map(
            lambda row, i: row | {"prompt": [{"role": "user", "content": harmful[i]}]}, with_indices=True
        )
    )
    for ours, theirs in zip(run("table", rows), run("adapter_off", rows.to_iterable_dataset()), strict=True):
        for name in ("loss", "pact/divergence", "pact/eased"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-3), name
        assert ours["pact/eased"] > 0
