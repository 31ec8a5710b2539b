"""The configurations of examples/axolotl: Axolotl accepts them, and those of one process run on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from axolotl_runs import Workshop

EXAMPLES = {path.stem: path for path in (Path(__file__).parents[2] / "examples" / "axolotl").glob("*.yml")}
CAPABILITIES = {
    "capabilities": {"bf16": True, "n_gpu": 2, "compute_capability": "sm_90", "tf32": True, "fp8": True},
    "env_capabilities": {"torch_version": "2.13.0"},
}


def localised(workshop: Workshop, name: str) -> dict[str, Any]:
    """An example with this folder's model, data and tokens in place of the names that it gives."""
    config = yaml.safe_load(EXAMPLES[name].read_text(encoding="utf-8"))
    model, tokens = str(workshop.folder / "model"), str(workshop.folder / "tokens.safetensors")
    assert config["base_model"] == "meta-llama/Llama-3.1-8B-Instruct"
    config |= {"base_model": model, "output_dir": str(workshop.folder / name)}
    config["datasets"][0]["path"] = str(workshop.folder / "chat.jsonl")
    config["special_tokens"] = {"pad_token": "<|endoftext|>"}
    if config["pact"] is not True:
        assert config["pact"]["safety_tokens"] == "./safety_tokens.safetensors"
        config["pact"]["safety_tokens"] = tokens
    return config


def test_there_are_three():
    assert set(EXAMPLES) == {"lora-8b", "qlora-8b", "full-fsdp"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_axolotl_accepts_it_as_on_two_gpus(workshop, name):
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlConfigWCapabilities

    config = DictDefault(localised(workshop, name))
    prepare_plugins(config)
    kept = validate_config(config, **CAPABILITIES).to_dict()
    assert kept["pact"] == localised(workshop, name)["pact"]
    known = set(AxolotlConfigWCapabilities.model_fields) | {"pact"}
    assert not set(localised(workshop, name)) - known, "Axolotl would drop these keys"


@pytest.mark.parametrize("name", ["lora-8b", "qlora-8b", "full-fsdp"])
def test_it_runs_on_a_tiny_model_without_what_needs_a_gpu(workshop, name):
    on_the_cpu = {
        "bf16": False,
        "attn_implementation": "sdpa",
        "optimizer": "adamw_torch",
        "sequence_len": 192,
        "dataset_prepared_path": str(workshop.folder / "prepared"),
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
    }
    config = localised(workshop, name) | on_the_cpu
    for key in ("fsdp_version", "fsdp_config", "saves_per_epoch", "evals_per_epoch"):
        config.pop(key, None)
    if "adapter" in config:  # Axolotl turns its kernels on by itself; this one needs a GPU
        config["lora_mlp_kernel"] = False
    if config.get("load_in_4bit"):  # and these for 4-bit weights
        config |= {"lora_qkv_kernel": False, "lora_o_kernel": False}
    launcher = () if name == "lora-8b" else ("--launcher", "python")  # Axolotl's own takes half a minute
    run = workshop.axolotl("train", name, config | {"save_steps": 2}, *launcher).ok()
    assert "constrained: 2 steps" in run.verify().stdout
    assert run.receipt["reference"] == "table"
    assert run.receipt["terms"] == ["easing", "anchors"]
    for step in run.steps:
        names = {name for name in step if name.startswith("pact/")}
        assert names == {"pact/eased", "pact/anchor_divergence", "pact/refusal_shift", "pact/loss"}
        assert 0 <= step["pact/eased"] < 1
    assert run.receipt["positions"] > 0
