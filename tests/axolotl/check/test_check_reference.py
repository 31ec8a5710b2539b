"""Which reference a run would have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_configs import LORA, STREAMING, checked, config, found
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

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


def test_a_reference_may_be_an_adapter_without_a_tokenizer_of_its_own(tmp_path):
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained("./model"), LoraConfig(task_type="CAUSAL_LM"))
    tuned.save_pretrained(tmp_path / "tuned")
    report = checked(config(pact={"reference": str(tmp_path / "tuned")}))
    assert report.constrained
    assert report.unchecked == checked(config()).unchecked


@pytest.mark.parametrize("key", ["base_model", "lora_model_dir"])
def test_what_a_constrained_run_has_trained_is_not_the_aligned_model(tmp_path, key):
    (tmp_path / "pact_receipt.json").write_text("{}")
    report = checked(config(**{**LORA, key: str(tmp_path)}))
    (finding,) = (one for one in report.findings if "has trained it" in one.problem)
    assert (finding.key, finding.value) == (key, str(tmp_path))
    assert "`reference`" in finding.remedy
    assert not report.constrained


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
    assert checked(config(**sharded, **NAMED)).constrained


@pytest.mark.parametrize("deepspeed", ["zero3.json", ZERO3], ids=str)
def test_zero_stage_3_shards_the_parameters(deepspeed):
    Path("zero3.json").write_text(json.dumps(ZERO3))
    sharded = {"deepspeed": deepspeed}
    assert checked(config(**sharded)).reference.kind == "table"
    assert checked(config(**sharded, **LORA, **STREAMING)).constrained
    text = found(checked(config(**sharded, **STREAMING)))["deepspeed"]
    assert "a copy of the parameters, which are sharded, cannot serve as the reference" in text
    assert "Use ZeRO stage 2, or remove `streaming`." in text, "a second model would be refused"
    named = found(checked(config(**sharded, **NAMED)))
    assert "partitions a second model" in named["pact.reference"]
    published = {"easing": False, "anchors": False, "advanced": {"published": True}}
    rows = found(checked(config(**sharded, pact=published)))
    assert "single rows of a head in training" in rows["pact.advanced.published"]
    assert checked(config(**sharded, **LORA, pact=published)).constrained


def test_deepspeed_without_sharded_parameters():
    zero2 = {"deepspeed": {"zero_optimization": {"stage": 2}}}
    assert checked(config(**zero2, **STREAMING)).reference.kind == "copy"
    assert "gone.json" in found(checked(config(deepspeed="gone.json")))["deepspeed"]
