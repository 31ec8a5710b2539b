"""Pages that tell what `pact: true` keeps tell it of its newest runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pact_plugin.config import PactConfig

ROOT = Path(__file__).parents[2]
ROWS = json.loads(
    (ROOT / "benchmarks/field/results/qwen-0.5b-float32/field-held-out.json").read_text(encoding="utf-8")
)["rows"]


WITH_BEFORE = "{kept} of {before}"
CELLS = {
    "README.md": WITH_BEFORE,
    "docs/index.md": "{kept}",  # its heading has the other
    "docs/measured.md": WITH_BEFORE,
    "benchmarks/field/README.md": WITH_BEFORE,
}


@pytest.mark.parametrize("page", CELLS)
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
        if (row["task"], row["method"], row["strength"], row["contamination"], row["wording"])
        == (task, method, strength, contamination, "target")
    )
    found = row["changes"]["harmful"]
    cell = CELLS[page].format(kept=f"{found['kept']:.4g}", before=f"{found['before']:g}")
    assert f"| {cell} |" in (ROOT / page).read_text(encoding="utf-8")
