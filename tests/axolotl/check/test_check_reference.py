"""Which reference a run would have, and whether it fits beside the model in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from check_configs import LORA, STREAMING, checked, config, found
from pact_axolotl.check import memory
from pact_axolotl.check.reference_plan import ReferencePlan
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoConfig

from pact_plugin.reference.source import build_source

STORE = "model-out/_pact_store"
ANCHORS = {"pact": {"easing": False}}
NAMED = {"pact": {"reference": "./model"}}


@pytest.mark.parametrize(
    ("changes", "kind", "source", "table"),
    [
        ({}, "table", "itself", STORE),
        ({"num_epochs": 3}, "table", "itself", STORE),
        ({"output_dir": "./out"}, "table", "itself", "out/_pact_store"),
        ({"pact": {"advanced": {"store": "./store"}}}, "table", "itself", "./store"),
        (STREAMING, "copy", "copy", None),
        ({"pretraining_dataset": [{"path": "text.jsonl"}]}, "copy", "copy", None),
        ({"processor_type": "AutoProcessor"}, "copy", "copy", None),
        (LORA, "table", "adapter_off", STORE),
        ({**LORA, "num_epochs": 3}, "table", "adapter_off", STORE),
        ({**LORA, **STREAMING}, "adapter_off", "adapter_off", None),
        ({"adapter": "qlora", "load_in_4bit": True}, "table", "adapter_off", STORE),
        ({**LORA, "peft_init_lora_weights": "gaussian"}, "table", "adapter_off", STORE),
        ({**LORA, "lora_model_dir": "./adapter"}, "table", "itself", STORE),
        (NAMED, "table", "model", STORE),
        ({**LORA, **NAMED}, "table", "model", STORE),
        ({**LORA, **NAMED, **STREAMING}, "model", "model", None),
        (ANCHORS, "start", "itself", None),
        ({**LORA, **ANCHORS, **STREAMING}, "start", "adapter_off", None),
        ({"pact": {"hold_data": True, "easing": False, "anchors": False}}, "table", "itself", STORE),
    ],
    ids=str,
)
def test_which_reference_it_will_be(changes, kind, source, table):
    report = checked(config(**changes))
    assert report.constrained
    plan = report.reference
    assert (plan.kind, plan.source, plan.table) == (kind, source, table)
    assert table is None or f"written to {table} before the first step" in plan.why
    assert (table is None and kind != "start") == ("run in each step" in plan.why)


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ({"lora_model_dir": "./adapter"}, "in `lora_model_dir` (which is trained further)"),
        (
            {"peft_init_lora_weights": "pissa_niter_4"},
            "of `peft_init_lora_weights: pissa_niter_4` (which does not start at zero)",
        ),
        (
            {"peft_init_lora_weights": False},
            "of `peft_init_lora_weights: false` (which does not start at zero)",
        ),
    ],
    ids=str,
)
def test_a_copy_says_of_what_and_why(start, why):
    report = checked(config(**LORA, **STREAMING, **start))
    assert report.constrained
    assert report.reference.kind == "copy"
    assert report.reference.why == (
        f"a copy of the adapter {why}, run in each step, as `streaming` data cannot be read before training"
    )


@pytest.mark.parametrize(("dtype", "changes"), [("float32", {}), ("bfloat16", {"bf16": "auto"})])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # untied and tied embeddings
def test_the_estimate_is_what_the_reference_holds(folder, architecture, dtype, changes):
    model = tiny_model(architecture).to(getattr(torch, dtype))
    model.config.save_pretrained(folder / architecture)
    tiny_tokenizer().save_pretrained(folder / architecture)
    planned = checked(config(base_model=f"./{architecture}", **STREAMING, **changes)).reference
    assert planned.bytes == build_source("copy", model).extra_bytes
    assert planned.model_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    named = checked(config(base_model=f"./{architecture}", **NAMED, **changes)).reference
    assert named.bytes == sum(p.numel() * model.dtype.itemsize for p in tiny_model().parameters())


def test_only_what_is_trained_is_copied():
    patterns = ["^lm_head.weight$", "model.layers.1.mlp.[a-z_]+.weight$", "^model.embed_tokens.weight$[:20]"]
    model = tiny_model()
    trained = [model.lm_head, model.model.layers[1].mlp, model.model.embed_tokens]
    size = memory.size(model.config, patterns)
    assert size.trained == sum(p.numel() for module in trained for p in module.parameters())
    assert size.parameters == sum(p.numel() for p in model.parameters())


def test_a_quantized_model_is_smaller_than_its_reference():
    planned = checked(config(**LORA, **NAMED, load_in_4bit=True, bf16=True)).reference
    assert planned.bytes == 4 * planned.model_bytes


LARGE = {"base_model": "./large", "bf16": True}


def test_a_reference_that_does_not_fit():
    report = checked(config(**LARGE, **STREAMING))
    text = found(report)["pact.reference"]
    parameters = memory.size(AutoConfig.from_pretrained("./large")).parameters
    assert report.reference.bytes == report.reference.model_bytes == 2 * parameters
    assert f"about {2 * parameters / 2**30:.1f} GiB beside the {2 * parameters / 2**30:.1f} GiB" in text
    assert f"{report.reference.device.free / 2**30:.1f} GiB free" in text
    assert "Use data that can be read before training" in text
    text = found(checked(config(**LARGE, pact={"reference": "./large"})))["pact.reference"]
    assert "Write `reference: auto` if training starts from that model" in text


@pytest.mark.parametrize("changes", [{}, LORA, {**LORA, **STREAMING}, ANCHORS], ids=str)
def test_a_table_and_an_adapter_need_no_memory(changes):
    report = checked(config(**LARGE, **changes))
    assert report.constrained
    assert report.reference.bytes == 0


ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    "sharded", [{"fsdp_config": {"version": 2}}, {"fsdp": ["full_shard"], "fsdp_version": 2}], ids=str
)
def test_a_copy_is_no_reference_where_parameters_are_sharded(sharded):
    key = next(iter(sharded))
    text = found(checked(config(**sharded, **STREAMING)))[key]
    assert "a copy of the parameters, which are sharded, cannot serve as the reference" in text
    assert "Write `pact: {reference: ./model}`, or remove `streaming`." in text
    assert checked(config(**sharded)).reference.kind == "table"
    assert checked(config(**sharded, **LORA, **STREAMING)).constrained
    named = checked(config(**LARGE, **sharded, pact={"reference": "./large"}))
    assert named.constrained
    assert any(f"whether the reference fits, as `{key}`" in one for one in named.unchecked)


@pytest.mark.parametrize("deepspeed", ["zero3.json", ZERO3], ids=str)
def test_zero_stage_3_shards_the_parameters(deepspeed):
    Path("zero3.json").write_text(json.dumps(ZERO3))
    sharded = {"deepspeed": deepspeed}
    assert checked(config(**sharded)).reference.kind == "table"
    assert checked(config(**sharded, **LARGE)).constrained
    assert checked(config(**sharded, **LORA, **STREAMING)).constrained
    text = found(checked(config(**sharded, **STREAMING)))["deepspeed"]
    assert "a copy of the parameters, which are sharded, cannot serve as the reference" in text
    named = found(checked(config(**LARGE, **sharded, pact={"reference": "./large"})))
    assert "partitions a second model" in named["pact.reference"]
    published = {"easing": False, "anchors": False, "advanced": {"published": True}}
    rows = found(checked(config(**sharded, pact=published)))
    assert "single rows of a head in training" in rows["pact.advanced.published"]
    assert checked(config(**sharded, **LORA, pact=published)).constrained


def test_deepspeed_without_sharded_parameters_is_measured():
    zero2 = {"deepspeed": {"zero_optimization": {"stage": 2}}}
    assert checked(config(**zero2, **STREAMING)).constrained
    assert "GiB free" in found(checked(config(**LARGE, **STREAMING, **zero2)))["pact.reference"]
    assert "gone.json" in found(checked(config(deepspeed="gone.json")))["deepspeed"]


@pytest.mark.parametrize(("needed", "fits"), [(10, True), (11, False)])
def test_fitting_is_about_what_is_free(needed, fits):
    device = memory.Device("a device", 30)
    plan = ReferencePlan("copy", "copy", "", bytes=needed, model_bytes=20, device=device)
    assert plan.fits is fits
