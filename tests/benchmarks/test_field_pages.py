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
    kept = f"{row['changes']['harmful']['kept']:.4g}"
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert any(re.search(rf"\| {re.escape(kept)}\b", line) for line in lines if line.startswith("|"))
