"""`pact-plugin check` where Axolotl is: the check agrees with what Axolotl does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from axolotl_runs import LORA, Workshop
from pact_axolotl.check.axolotl_report import AxolotlReport
from pact_axolotl.check.check import check
from pact_axolotl.check.config_file import misspelt_keys

import pact_plugin as pact

HERE = Path(sys.executable).parent


pytestmark = pytest.mark.usefixtures("own_path", "asked_by_forks")


def written(workshop: Workshop, **changes: Any) -> Path:
    file = workshop.folder / "checked.yml"
    file.write_text(yaml.safe_dump(workshop.config(**changes) | {"output_dir": str(workshop.folder / "out")}))
    return file


def keys(report: AxolotlReport) -> list[str]:
    return sorted(finding.key for finding in report.findings)


def test_a_run_that_is_found_good_is_constrained(workshop):
    report = check(written(workshop, **LORA, max_steps=1, save_steps=1))
    assert report.constrained
    assert report.unchecked == []
    assert any(note.startswith("Axolotl 0.") and str(HERE) in note for note in report.notes)
    run = workshop.train("good", **LORA, max_steps=1, save_steps=1).ok()
    assert run.receipt["steps"] == [[1, 1]]
    assert run.receipt["reference"] == report.reference.kind == "table"
    assert run.receipt["tokens"]["digest"] == report.tokens["digest"]


def test_axolotls_findings_stand_beside_ours(workshop):
    file = written(
        workshop, pact={"weigth": 1}, micro_batch_size="many", adapter="lora", load_in_8bit=True, rl="ipo"
    )
    before = set(workshop.folder.iterdir())
    report = check(file)
    assert keys(report) == ["micro_batch_size", "pact.weigth", "rl"]
    (axolotls,) = [one for one in report.findings if one.key == "micro_batch_size"]
    assert "many" in str(axolotls.value)
    assert axolotls.problem.startswith("Axolotl refuses it")
    assert set(workshop.folder.iterdir()) == before  # nothing was prepared, logged or trained


def test_no_key_of_axolotls_is_taken_for_a_misspelling():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    keys = list(AxolotlInputConfig.model_fields)
    assert len(keys) > 100
    assert list(misspelt_keys(dict.fromkeys(keys, 1))) == []


def test_json_of_pact_plugin_check_in_axolotls_environment(workshop):
    command = [sys.executable, "-m", "pact_plugin.cli.main", "check", str(written(workshop)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["constrained"] is True
    assert answer["unchecked"] == []
    assert (answer["reference"]["kind"], answer["reference"]["source"]) == ("table", "itself")
    assert answer["tokens"]["digest"] == pact.SafetyTokens.load(workshop.folder / "tokens.safetensors").digest
