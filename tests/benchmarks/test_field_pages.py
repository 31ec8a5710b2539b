"""Pages that tell what `pact: true` keeps tell it of its newest runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.field.settings import Cell
from pact_plugin.config import PactConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/field/results"
PAGES = [f"benchmarks/field/{name}.md" for name in ("README", "BASELINES", "VARIATIONS", "CHOICES")]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


ROWS = {
    rate: read(RESULTS / folder / "field-held-out.json")["rows"]
    for rate, folder in (
        ("5e-4", "qwen-0.5b-float32"),
        ("1.5e-4", "qwen-0.5b-lr-1.5e-4"),
        ("5e-4, 1.5B", "qwen-1.5b"),
    )
}

DEFAULT = ("pact", PactConfig().weight)
OURS = {"5e-4": DEFAULT, "1.5e-4": ("one-order", 3.0), "5e-4, 1.5B": DEFAULT}
"""As the files call what the tables call PACT, and its weight: the default; where it was not run two anchors."""

TOLD_BY = {
    "5e-4": ("README.md", "docs/measured.md", "benchmarks/field/README.md"),
    "1.5e-4": ("benchmarks/field/VARIATIONS.md",),
}
RUNS = {
    "5e-4": [("alpaca", 0.0), ("alpaca", 0.1), ("gsm8k", 0.0), ("gsm8k", 0.1)],
    "1.5e-4": [("alpaca", 0.0), ("alpaca", 0.1)],
}


@pytest.mark.parametrize("ours", [True, False], ids=["pact", "plain"])
@pytest.mark.parametrize(
    ("page", "rate", "task", "contamination"),
    [(page, rate, *run) for rate, runs in RUNS.items() for run in runs for page in TOLD_BY[rate]],
)
def test_the_refusals_are_those_of_the_results(page, rate, task, contamination, ours):
    method, strength = OURS[rate] if ours else ("plain", None)
    (row,) = (
        row
        for row in ROWS[rate]
        if (row["task"], row["method"], row["strength"], row["contamination"], row["wording"])
        == (task, method, strength, contamination, "target")
    )
    found = row["changes"]["harmful"]
    kept = f"{found['kept']:.4g} of {found['before']:g}"
    cell = f"{found['after']:.4g}" if page == "README.md" else kept
    assert f"| {cell} |" in (ROOT / page).read_text(encoding="utf-8")


def points(found: dict[str, Any], *, whole: bool = True) -> str:
    """A change as the pages write it, with its interval if that is wanted."""
    text = f"{found['points']:+.1f}" + (f" ({found['low']:+.1f} to {found['high']:+.1f})" if whole else "")
    return text.replace("+0.0", "0.0").replace("-0.0", "0.0")


@pytest.mark.parametrize(
    "row",
    [row for rows in ROWS.values() for row in rows if row["method"] != "aligned"],
    ids=lambda row: (
        f"{row['task']}-{row['contamination']}-{row['wording']}-{row['method']}@{row['strength']}"
    ),
)
def test_every_result_stands_in_one_line(row):
    """Of the benchmark's pages: refusals with their interval, over-refusal, and how far the model has moved."""
    lines = [line for page in PAGES for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    harmful, over = row["changes"]["harmful"], row["changes"]["overrefusal"]
    wanted = [f"| {harmful['kept']:.4g} ", f"| {harmful['lost']} / {harmful['won']} |", points(harmful)]
    wanted += [points(over, whole=False), f"{row['everyday_kl']:.3f}"]
    assert any(all(one in line for one in wanted) for line in lines), wanted


@pytest.mark.parametrize(
    ("page", "row"),
    [
        pytest.param(page, row, id=f"{page}-{rate}-{row['task']}-{row['contamination']}")
        for rate, rows in ROWS.items()
        for row in rows
        if (row["method"], row["strength"], row["wording"]) == (*DEFAULT, "target")
        for page in ("README.md", "docs/measured.md")
    ],
)
def test_the_default_is_told_with_its_intervals(page, row):
    text = (ROOT / page).read_text(encoding="utf-8")
    wanted = [points(row["changes"][name]) for name in ("harmful", "overrefusal")]
    assert all(one in text for one in wanted), wanted
    if page == "README.md":  # has all of it in one line
        assert any(all(one in line for one in wanted) for line in text.splitlines()), wanted
        assert "**The task's held-out loss ends at plain's or below.**" in text
        (plain,) = (
            other
            for rows in ROWS.values()
            if row in rows
            for other in rows
            if (other["task"], other["contamination"], other["method"])
            == (row["task"], row["contamination"], "plain")
        )
        assert row["nll"] < 1.001 * plain["nll"]


REPORTS = sorted(RESULTS.glob("*/field-*.json"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_scores_by_prompt_say_what_the_results_say(report):
    cells, compared = read(report.with_name(report.name.replace("field-", "verdicts-")))["cells"], 0
    for row in read(report)["rows"]:
        what = {name: row[name] for name in ("task", "contamination", "wording", "method", "strength")}
        seeds = [0] if row["method"] == "aligned" else row["seeds"]
        sets = [cells[Cell(**what, seed=seed).name]["sets"] for seed in seeds]
        for name, found in row["changes"].items():
            if found is not None and name in sets[0]:
                refused = sum(score >= 0.5 for one in sets for score in one[name].values())
                assert refused == pytest.approx(found["after"] * len(seeds)), (what, name)
                compared += 1
    assert compared
