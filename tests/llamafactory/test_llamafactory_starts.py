"""What `check` says of what a run starts from, as LLaMA-Factory itself would take it: FSDP, adapters, checkpoints."""

from __future__ import annotations

import json

import pytest
from llamafactory_runs import FULL, LORA, Workshop
from pact_llamafactory.check.check import check


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("llamafactory"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"fsdp": "full_shard auto_wrap"},
        {"fsdp": True, "fsdp_config": {"fsdp_version": 1}},
        {"fsdp": "full_shard", "fsdp_config": {"version": 2}},
        {"fsdp": "full_shard", "fsdp_config": {"fsdp_version": "2"}},
        {"fsdp": "shard_grad_op", "fsdp_config": "second.json"},
        {"fsdp": "", "fsdp_config": {"version": 1}},
    ],
    ids=str,
)
def test_the_first_version_of_fsdp(workshop, monkeypatch, arguments):
    """The version is the one that LLaMA-Factory's own arguments come to."""
    from llamafactory.hparams import TrainingArguments

    monkeypatch.chdir(workshop.folder)
    for name in (
        "ACCELERATE_USE_FSDP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
    ):  # so that they are as before afterwards
        monkeypatch.setenv(name, "false")
    (workshop.folder / "second.json").write_text(json.dumps({"version": 2}))
    report = check(workshop.written("sharded", **LORA, **arguments))
    plugin = TrainingArguments(output_dir="out", use_cpu=True, **arguments).fsdp_plugin_args
    if plugin is None or plugin["fsdp_version"] == 2:
        assert report.constrained
    else:
        (finding,) = report.findings
        assert (finding.key, finding.value) == ("fsdp", arguments["fsdp"])
        assert "version: 2" in finding.remedy


def test_fsdp_that_cannot_be_used(workshop):
    sharded = {**LORA, "fsdp": "full_shard"}
    (finding,) = check(workshop.written("sharded", fsdp_config="nowhere.json", **sharded)).findings
    assert (finding.key, finding.value) == ("fsdp_config", "nowhere.json")
    saving = {"version": 2, "cpu_ram_efficient_loading": True}
    (finding,) = check(workshop.written("sharded", fsdp_config=saving, **sharded)).findings
    assert finding.key == "fsdp_config.cpu_ram_efficient_loading"


def test_an_adapter_to_start_from(workshop):
    """It is trained on, and the aligned model is the one that has it."""
    first = workshop.plain("adapter", max_steps=1, save_steps=1, **LORA).ok()
    named = {"adapter_name_or_path": str(first.output), **LORA}
    assert check(workshop.written("further", **named)).constrained
    run = workshop.train("further", **named).ok()
    assert run.receipt["reference"] == "table"
    assert run.steps[0]["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    again = LORA | {"adapter_name_or_path": str(run.output)}
    (finding,) = check(workshop.written("again", **again)).findings
    assert (finding.key, finding.value) == ("adapter_name_or_path", str(run.output))
    assert "as `reference`" in finding.remedy
    named["adapter_name_or_path"] += ", ./nowhere"
    (finding,) = check(workshop.written("further", **named)).findings
    assert (finding.key, finding.value) == ("adapter_name_or_path", "./nowhere")
    named["adapter_name_or_path"] = str(workshop.folder / "model")
    (finding,) = check(workshop.written("further", **named)).findings
    assert "holds no adapter" in finding.problem
    named = {"adapter_name_or_path": str(first.output), **FULL}
    (finding,) = check(workshop.written("further", **named)).findings
    assert "`finetuning_type: lora`" in finding.remedy


def test_a_checkpoint_that_is_not_there(workshop):
    for named, word in ((True, "holds no checkpoint"), ("out/checkpoint-9", "no such folder")):
        (finding,) = check(workshop.written("anew", resume_from_checkpoint=named, **LORA)).findings
        assert (finding.key, finding.value) == ("resume_from_checkpoint", named)
        assert word in finding.problem


def test_check_of_a_folder_with_a_run_of_other_settings(workshop):
    workshop.train("heavier", max_steps=1, save_steps=1, **LORA).ok()
    assert check(workshop.written("heavier", max_steps=2, **LORA)).constrained
    heavier = workshop.named_tokens | {"weight": 2}
    (finding,) = check(workshop.written("heavier", pact=heavier, max_steps=2, **LORA)).findings
    assert finding.key == "pact.weight"
    assert "`overwrite_output_dir: true`" in finding.remedy
    # The table there is one of other settings, too.
    other = heavier | {"easing": {"first": 8}}
    anew = {"pact": other, "max_steps": 2, "overwrite_output_dir": True, **LORA}
    assert check(workshop.written("heavier", **anew)).constrained
    assert workshop.train("heavier", **anew).ok().receipt["steps"] == [[1, 2]]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"val_size": 0.1, "eval_dataset": "chat"}, "`val_size`"),
        ({"mask_history": True, "train_on_prompt": True}, "`train_on_prompt`"),
        ({"use_galore": True, "finetuning_type": "lora"}, "GaLore"),
        ({"finetuning_type": "qlora"}, "Invalid fine-tuning method"),
    ],
    ids=str,
)
def test_values_that_llamafactory_does_not_take(workshop, arguments, word):
    from llamafactory.hparams import get_train_args

    with pytest.raises((ValueError, AssertionError), match=word):
        get_train_args(workshop.config(output_dir="out", pact=None, **arguments))
    (finding,) = check(workshop.written("values", **arguments)).findings
    assert word in finding.problem


def test_a_stage_that_there_is_not(workshop):
    (finding,) = check(workshop.written("values", stage="sftt", **LORA)).findings
    assert (finding.key, finding.remedy) == ("stage", "Write `stage: sft` or `pt`.")
    run = workshop.plain("values", stage="sftt", **LORA)
    assert "Unknown task: sftt" in run.log
