"""`pact-plugin check` and `axolotl pact-check` where Axolotl is: the check agrees with what Axolotl does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from axolotl_runs import LORA, Workshop
from pact_axolotl.check import check
from pact_axolotl.config_file import misspelt_keys
from pact_axolotl.environment import find_axolotl
from pact_axolotl.report import Report

import pact_plugin as pact

HERE = Path(sys.executable).parent


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("axolotl"))


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setenv("PATH", f"{HERE}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def written(workshop: Workshop, **changes: Any) -> Path:
    file = workshop.folder / "checked.yml"
    file.write_text(yaml.safe_dump(workshop.config(**changes) | {"output_dir": str(workshop.folder / "out")}))
    return file


def keys(report: Report) -> list[str]:
    return sorted(finding.key for finding in report.findings)


def test_a_run_that_is_found_good_is_constrained(workshop):
    report = check(written(workshop, **LORA, max_steps=1, save_steps=1))
    assert report.constrained
    assert report.unchecked == []
    assert any(note.startswith("Axolotl 0.") and str(HERE) in note for note in report.notes)
    run = workshop.train("good", **LORA, max_steps=1, save_steps=1).ok()
    assert run.receipt["steps"] == [[1, 1]]
    assert run.receipt["reference"] == report.reference.kind == "adapter_off"
    assert run.receipt["tokens"]["digest"] == report.tokens["digest"]


def test_axolotls_findings_stand_beside_ours(workshop):
    file = written(
        workshop, pact={"weigth": 1}, micro_batch_size="many", adapter="lora", load_in_8bit=True, rl="dpo"
    )
    before = set(workshop.folder.iterdir())
    report = check(file)
    assert keys(report) == ["micro_batch_size", "pact.weigth", "rl"]
    (axolotls,) = [one for one in report.findings if one.key == "micro_batch_size"]
    assert "many" in str(axolotls.value)
    assert axolotls.problem.startswith("Axolotl refuses it")
    assert set(workshop.folder.iterdir()) == before  # nothing was prepared, logged or trained


def loaded_pact(file: Path) -> Any:
    """What `pact` is after Axolotl has read a configuration, in a process of its own."""
    code = (
        "import sys; from axolotl.cli.config import load_cfg; cfg = load_cfg(sys.argv[1]); "
        "print('PACT', cfg.get('pact'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env=os.environ | {"AXOLOTL_DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("PACT")]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"plugins": ["pact_plugin.axolotl.PactPlugin"]},
            "plugins",
        ),  # Axolotl 0.19 logs that it is not there
        ({"pact": None, "pcat": True}, "pcat"),
    ],
    ids=["misspelt-plugin", "misspelt-key"],
)
def test_what_axolotl_passes_over_in_silence_is_found(workshop, changes, key):
    file = written(workshop, **changes)
    report = check(file)
    assert keys(report) == [key]
    axolotl = find_axolotl()
    assert axolotl is not None
    if not (
        axolotl.loads_installed and key == "plugins"
    ):  # newer releases stop at a plugin that is not there
        assert loaded_pact(file) == ["PACT None"]


def test_no_key_of_axolotls_is_taken_for_a_misspelling():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    keys = list(AxolotlInputConfig.model_fields)
    assert len(keys) > 100
    assert list(misspelt_keys(dict.fromkeys(keys, 1))) == []


def test_an_environment_of_axolotl_without_the_plugin(workshop, tmp_path, monkeypatch):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = subprocess.run(
        [environment / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A .pth file lets Axolotl in, but not what its environment has through .pth files itself: pact-plugin.
    (Path(packages) / "axolotl.pth").write_text(sysconfig.get_path("purelib"))
    command = environment / "bin/axolotl"
    command.write_text((HERE / "axolotl").read_text().replace(str(HERE), str(environment / "bin")))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    report = check(written(workshop, **LORA))
    (finding,) = report.findings
    assert finding.key == "pact-plugin"
    assert "would log that and train on" in finding.problem
    assert f"{environment}/bin/python" in finding.remedy
    assert "pip install 'pact-plugin[axolotl]'" in finding.remedy


def axolotl(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    command = ["axolotl", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_command_of_axolotls(workshop):
    done = axolotl("pact-check", str(written(workshop, pact={"weigth": 1}, **LORA)))
    assert done.returncode == 1
    assert "✗ pact.weigth: 1" in done.stdout
    assert "Did you mean `weight`?" in done.stdout
    assert "pact-check" in axolotl("--help").stdout


def test_json_of_pact_plugin_check_in_axolotls_environment(workshop):
    command = [sys.executable, "-m", "pact_plugin.cli.main", "check", str(written(workshop)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["constrained"] is True
    assert answer["unchecked"] == []
    assert answer["reference"]["kind"] == "stored"
    assert answer["tokens"]["digest"] == pact.SafetyTokens.load(workshop.folder / "tokens.safetensors").digest
