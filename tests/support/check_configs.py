"""Axolotl configurations, and what `check` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pact_axolotl.check.axolotl_report import AxolotlReport
from pact_axolotl.check.check import check

PLUGIN = "pact_axolotl.PactPlugin"
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
STREAMING = {"streaming": True, "max_steps": 10}


def config(**changes: Any) -> dict[str, Any]:
    """A configuration that names files of the folder that the tests run in; a key set to None is left out."""
    base = {
        "base_model": "./model",
        "plugins": [PLUGIN],
        "pact": {"safety_tokens": "t.safetensors"},
        "datasets": [{"path": "chat.jsonl", "type": "chat_template"}],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.01,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def checked(content: str | dict[str, Any]) -> AxolotlReport:
    file = Path("config.yml")
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return check(file)


def found(report: AxolotlReport) -> dict[str, str]:
    """The findings by key; each key has one here, with a problem and a remedy."""
    assert len({finding.key for finding in report.findings}) == len(report.findings)
    assert all(finding.problem and finding.remedy for finding in report.findings)
    return {one.key: f"{one.value!r} {one.problem}. {one.remedy}" for one in report.findings}
