"""`pact-plugin check` where ms-swift is: the check agrees with what ms-swift does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_runs import pact_command
from pact_swift.check.check import check
from pact_swift.check.config_file import is_swift
from swift_runs import LORA, Workshop

from pact_plugin.hooks.manager import find_config_check


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("swift"))


def found(file: Path) -> dict[str, str]:
    return {one.key: one.remedy for one in check(file).findings}


def test_a_run_that_is_found_good_is_constrained(workshop):
    file = workshop.written("good", max_steps=1, save_steps=1, **LORA)
    done = pact_command("check", str(file))
    assert done.returncode == 0, done.stderr
    assert "ms-swift 4.6" in done.stdout
    assert "this run will be constrained" in " ".join(done.stdout.split())
    run = workshop.swift("sft", file, workshop.folder / "good").ok()
    assert run.receipt["steps"] == [[1, 1]]


def test_every_reason_is_given(workshop):
    plugin = workshop.plugin("broken", safety_tokens="/nowhere.safetensors")
    file = workshop.written(
        "bad",
        external_plugins=[plugin],
        model="./nowhere",
        loss_scale="hermes",
        sequence_parallel_size=2,
        leraning_rate=3,
        resume_from_checkpoint=str(workshop.folder),
    )
    done = pact_command("check", str(file), "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["constrained"] is False
    remedies = {one["key"]: one["remedy"] for one in answer["findings"]}
    assert set(remedies) == {
        *("leraning_rate", "model", "loss_scale", "sequence_parallel_size"),
        *("resume_from_checkpoint", "safety_tokens"),
    }
    assert "`learning_rate`" in remedies["leraning_rate"]


@pytest.mark.parametrize(
    ("arguments", "key", "remedy"),
    [
        ({"num_labels": 2}, "num_labels", "Remove `task_type` and `num_labels`"),
        ({"train_type": "lora"}, "train_type", "`tuner_type`"),
        ({"loss_scale": "mine"}, "loss_scale", "`is_binary_loss_scale: true`"),
        ({"rlhf_type": "kto"}, "rlhf_type", "`swift sft`"),
        ({"enable_dft_loss": "true"}, "enable_dft_loss", "'easing': False"),
    ],
    ids=str,
)
def test_a_reason_and_its_remedy(workshop, arguments, key, remedy):
    assert remedy in found(workshop.written("reason", **arguments, **LORA)).pop(key)


@pytest.mark.parametrize(
    "arguments",
    [
        {"enable_dft_loss": "false", "predict_with_generate": "false"},
        {"sequence_parallel_size": "two"},
        {"deepspeed": {"tensor_parallel": 2}},
    ],
    ids=str,
)
def test_what_is_no_reason(workshop, arguments):
    """Or ms-swift's own to give, as for a number that is none."""
    assert check(workshop.written("no-reason", **arguments, **LORA)).constrained


def test_an_adapter_that_a_constrained_run_has_trained(workshop):
    first = workshop.train("first", max_steps=1, save_steps=1, **LORA).ok()
    on = {"adapters": [str(first.checkpoints[-1])], **LORA}
    assert "as `reference`" in found(workshop.written("on", **on)).pop("adapters")
    run = workshop.train("on", **on)
    assert run.status != 0
    assert "a run of PACT has trained it" in run.log, run.log[-2000:]
    resumed = workshop.written("resumed", resume_from_checkpoint=on["adapters"][0], **LORA)
    assert check(resumed).constrained
    assert "whether the adapter's settings are those of the checkpoint" in check(resumed).unchecked


def test_no_plugin_registers(workshop):
    other = workshop.folder / "other.py"
    other.write_text("x = 1\n")
    for plugins in (None, [str(other)]):
        (remedy,) = found(workshop.written("off", external_plugins=plugins)).values()
        assert "python -m pact_swift" in remedy


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("import pact_swift\npact_swift.register({'weigth': 1})\n", "weigth"),
        ("import pact_swift\npact_swift.register({'weight': 0})\n", "weight"),
        ("import pact_swift\npact_swift.register({'anchors': {'prompts': 'no.txt'}})\n", "anchors.prompts"),
        ("import nothing_of_this_name\n", "external_plugins"),
        ("import pact_swift\npact_swift.register(False)\n", "external_plugins"),
        ("import pact_swift\nfor w in (1, 2):\n    pact_swift.register({'weight': w})\n", "external_plugins"),
    ],
    ids=["unknown-key", "weight-0", "no-prompts", "import", "off", "twice"],
)
def test_plugins_are_run_as_ms_swift_would(workshop, text, key):
    plugin = workshop.folder / "tried.py"
    plugin.write_text(text)
    assert set(found(workshop.written("tried", external_plugins=[str(plugin)]))) == {key}


def test_a_plugin_that_is_not_there(workshop):
    assert set(found(workshop.written("gone", external_plugins=["nowhere.py"]))) == {"external_plugins"}


def test_which_files_are_ms_swifts(workshop, tmp_path):
    assert is_swift(workshop.written("mine"))
    axolotl = tmp_path / "axolotl.yml"
    axolotl.write_text("base_model: m\nplugins: [pact_axolotl.PactPlugin]\npact: true\n")
    broken = tmp_path / "broken.yml"
    broken.write_text("a: [")
    as_json = tmp_path / "mine.json"
    as_json.write_text(json.dumps({"model": "m", "external_plugins": ["pact.py"]}))
    names = [find_config_check(file).name for file in (axolotl, broken, tmp_path / "none.yml", as_json)]
    assert names == ["axolotl", "axolotl", "axolotl", "swift"]
