"""Pages that tell what `pact: true` keeps tell it of its newest runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pact_plugin.config import PactConfig

ROOT = Path(__file__).parents[2]
ROWS = json.loads(
    (ROOT / "benchmarks/field/results/qwen-0.5b-float32/field-held-out.json").read_text(encoding="utf-8")
)["rows"]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/measured.md", "benchmarks/field/README.md"]
)
@pytest.mark.parametrize(
    ("task", "method", "strength", "contamination"),
    [
        ("alpaca", "pact", PactConfig().weight, 0.0),
        ("alpaca", "pact", PactConfig().weight, 0.1),
        ("gsm8k", "pact", PactConfig().weight, 0.1),
        ("alpaca", "plain", None, 0.1),
    ],
)
def test_the_refusals_kept_are_those_of_the_results(page, task, method, strength, contamination):
    (row,) = (
        row
        for row in ROWS
        if (row["task"], row["method"], row["strength"], row["contamination"])
        == (task, method, strength, contamination)
    )
    found = row["changes"]["harmful"]
    kept, before = f"{found['kept']:.4g}", f"{found['before']:g}"
    text = (ROOT / page).read_text(encoding="utf-8")
    alone = f"refusals kept, of {before}" in text and re.search(rf"^\|.*\| {re.escape(kept)} \|", text, re.M)
    assert alone or f"| {kept} of {before} |" in text
