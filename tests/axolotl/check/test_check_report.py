"""What `check` notes and cannot check, runs that go on, the command `axolotl`, and what is printed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_configs import LORA, STREAMING, checked, config, found
from pact_axolotl.check.environment import find_axolotl
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import pact_plugin as pact
from pact_plugin.cli.main import app
from pact_plugin.data.prompts import for_pool
from pact_plugin.run.receipt import Receipt

# --- what cannot be checked is said ---


def test_a_tokenizer_that_cannot_be_loaded_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = checked(config(base_model="nobody/no-model", **STREAMING))
    assert any("nobody/no-model" in one and "safety tokens fit" in one for one in report.unchecked)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    report = checked(config(base_model="nobody/no-model", **STREAMING))
    assert time.monotonic() - began < 15  # the hub's client alone would wait longer
    assert len(report.unchecked) == 2


def test_the_published_objective_needs_a_header(folder):
    tiny_model().config.save_pretrained(folder / "plain")
    tiny_tokenizer(chat_template=None).save_pretrained(folder / "plain")

    def block(**settings: Any) -> dict[str, Any]:
        published = {"advanced": {"published": settings or True}, "safety_tokens": "t.safetensors"}
        return {"easing": False, "anchors": False, **published}

    assert checked(config(pact=block())).constrained
    report = checked(config(pact=block(), base_model="./plain"))
    assert "chat template" in found(report)["pact.advanced.published.assistant_header"]
    assert checked(config(pact=block(assistant_header="Answer: "), base_model="./plain")).constrained


# --- anchors ---


def test_anchors_are_noted():
    assert not [note for note in checked(config(pact={"anchors": False})).notes if "nchors" in note]
    for settings, count in ((True, 8), ({"anchors": {"per_step": 4}}, 4)):
        report = checked(config(pact=settings))
        assert report.constrained
        (note,) = [note for note in report.notes if "nchors" in note]
        assert f"Anchors: {count} in each step, or one beside each micro-batch" in note
        assert f"those of {len(for_pool().prompts)} prompts" in note


def test_a_file_of_anchors_is_read(tmp_path):
    gone = checked(config(pact={"anchors": {"prompts": str(tmp_path / "gone.jsonl")}}))
    assert "cannot be read" in found(gone)["pact.anchors.prompts"]


FSDP = {"fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"fsdp_version": 1}, True),
        ({"fsdp_config": {"version": 1}}, True),
        ({"fsdp_version": 2}, False),
        ({"fsdp_config": {"version": 2}}, False),
    ],
    ids=str,
)
def test_the_first_fsdp_is_refused(changes, refused):
    report = checked(config(**(FSDP | changes)))
    assert report.constrained is not refused
    if refused:
        assert "`fsdp_version: 2`" in found(report)["fsdp_version"]


def test_fsdp_without_a_version_is_noted():
    """What it then is depends on Axolotl's release, which is not known here."""
    report = checked(config(**FSDP))
    assert any("Before Axolotl 0.21 FSDP needs `fsdp_version: 2`" in note for note in report.notes)


# --- going on from a checkpoint ---


@pytest.fixture
def output(tmp_path) -> Path:
    (tmp_path / "out/checkpoint-9").mkdir(parents=True)
    terms = ["easing", "anchors"]
    receipt = Receipt(config=pact.PactConfig().summary(), terms=terms, tokens={}, reference="table")
    (tmp_path / "out/checkpoint-10/pact").mkdir(parents=True)
    receipt.write(tmp_path / "out/checkpoint-10")
    pact.SafetyTokens.load("t.safetensors").save(
        tmp_path / "out/checkpoint-10/pact/safety_tokens.safetensors"
    )
    return tmp_path / "out"


def test_the_last_checkpoint_keeps_its_tokens(output):
    report = checked(config(pact=True, output_dir=str(output), auto_resume_from_checkpoints=True))
    assert report.constrained
    assert report.tokens["source"] == "checkpoint"
    assert str(output / "checkpoint-10") in report.tokens["name"]
    assert checked(config(pact=True, output_dir=str(output))).tokens == {"source": "model"}


def test_a_checkpoint_without_receipt_or_of_other_settings(output):
    report = checked(config(resume_from_checkpoint=str(output / "checkpoint-9")))
    assert "no receipt" in found(report)["resume_from_checkpoint"]
    report = checked(config(resume_from_checkpoint=str(output / "checkpoint-10"), pact={"weight": 2}))
    assert "constrained with 10.0" in found(report)["pact.weight"]
    block = {"anchors": {"per_step": 4}}
    report = checked(config(resume_from_checkpoint=str(output / "checkpoint-10"), pact=block))
    assert "constrained with 8" in found(report)["pact.anchors.per_step"]


# --- the command `axolotl` ---


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("head", ["#!{}\n", "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\n"])
def test_a_command_whose_interpreter_has_no_axolotl(tmp_path, head):
    script(tmp_path / "bin/axolotl", head.format(sys.executable))
    report = checked(config())
    assert sys.executable in found(report)["axolotl"]
    assert report.unchecked == []


@pytest.mark.parametrize("text", ["#!/bin/sh\ndocker run axolotl\n", "MZ a binary", ""])
def test_a_command_of_which_nothing_is_known(tmp_path, text):
    path = script(tmp_path / "bin/axolotl", text)
    report = checked(config())
    assert report.constrained
    assert any(str(path) in one and "which Python" in one for one in report.unchecked)


def test_no_axolotl():
    assert find_axolotl() is None


# --- what is printed ---


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_summary_of_a_good_run():
    Path("config.yml").write_text(yaml.safe_dump(config(**LORA)))
    status, output = run("config.yml")
    assert status == 0
    assert "this run will be constrained" in output
    assert "Reference: table, the predictions of the model with its adapter switched off" in output
    assert "Safety tokens: 3" in output
    assert "Not checked: whether Axolotl's environment has pact-plugin" in output


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_preferences_have_anchors_alone(changes):
    report = checked(config(rl="dpo", **changes))
    assert report.constrained
    assert report.reference.kind == "start"
    assert sum(note.startswith("Anchors alone") for note in report.notes) == 1
    assert not [note for note in checked(config(**changes)).notes if "alone" in note]


def test_findings_are_readable_at_80_columns_with_whole_paths(tmp_path):
    path = f"/nowhere/{'long/' * 20}tokens.safetensors"
    Path("config.yml").write_text(yaml.safe_dump(config(pact={"safety_tokens": path}, rl="ipo")))
    status, output = run("config.yml")
    assert status == 1
    lines = output.splitlines()
    assert [line for line in lines if len(line) > 80] == [f"  {path}"]
    assert "✗ rl: ipo" in lines
    assert "  → Remove `rl`, or set `pact: false`." in lines
    assert "2 reasons" in output


def test_json_is_all_there_is_on_the_standard_output():
    Path("config.yml").write_text(yaml.safe_dump(config(**LORA)))
    done = subprocess.run(
        [sys.executable, "-m", "pact_plugin.cli.main", "check", "config.yml", "--json"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert set(answer) == {"constrained", "findings", "notes", "unchecked", "reference", "tokens"}
    assert answer["constrained"] is True


def test_findings_in_json():
    Path("config.yml").write_text(yaml.safe_dump(config(pact={"weigth": 1})))
    status, output = run("config.yml", "--json")
    assert status == 1
    answer = json.loads(output)
    assert set(answer) == {"constrained", "findings", "notes", "unchecked", "reference", "tokens"}
    assert answer["constrained"] is False
    (finding,) = answer["findings"]
    assert finding == {
        "key": "pact.weigth",
        "value": 1,
        "problem": "unknown key",
        "remedy": "Did you mean `weight`?",
    }


def test_a_missing_package_is_named_with_the_remedy():
    code = "import sys; sys.modules['yaml'] = None; from pact_plugin.cli.main import main; main()"
    command = [sys.executable, "-c", code, "check", "config.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs the package yaml. pip install 'pact-plugin[cli]'" in done.stderr
