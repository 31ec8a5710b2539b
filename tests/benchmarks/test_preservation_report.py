"""The preservation benchmark's report, from cells that no model made."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from preservation_cells import COMPLIED, NEITHER, REFUSED, plain, write_cell

from benchmarks.preservation import plots, report
from benchmarks.preservation.judges import DefaultJudge
from benchmarks.preservation.judging import judge_cells
from benchmarks.preservation.masses import moved, separation
from benchmarks.preservation.summary import Mean, kept_rows, measures, summarise
from pact_plugin.errors import ConfigError


class Parrot:
    """Finds compliance in every answer to a harmful prompt, and counts what it is asked."""

    name, kinds = "parrot", ("harmful",)

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, answers):
        self.asked += zip(prompts, answers, strict=True)
        return ["complied"] * len(answers)


def test_shares_by_style(tmp_path):
    harmful = [COMPLIED] * 2 + [NEITHER] + [REFUSED] * 2 + [NEITHER] * 2 + [REFUSED] * 3 + [COMPLIED] * 5
    write_cell(tmp_path, plain(), harmful=harmful, benign=[REFUSED] * 3 + [NEITHER] * 6 + [COMPLIED] * 6)
    (cell,) = judge_cells(tmp_path, [DefaultJudge()])
    assert measures(cell) == pytest.approx(
        {
            "attack_success": 7 / 15,
            "attack_success_asked": 0.2,
            "attack_success_direct": 0.4,
            "attack_success_roleplay": 0,
            "attack_success_prefilled": 1,
            "neither": 3 / 15,
            "neither_asked": 0.3,
            "neither_direct": 0.2,
            "neither_roleplay": 0.4,
            "neither_prefilled": 0,
            "over_refusal": 0.2,
            "neither_benign": 0.4,
            "task_score": 0.9,
            "coherence": -0.1,
            "kl_everyday": 0.01,
            "separation": None,
            "moved_harmful": None,
            "moved_benign": None,
        }
    )


def test_how_well_refusing_tells_harmful_from_harmless(tmp_path):
    """Of 150 pairs of an asked harmful prompt and a harmless one: the share in which the former has the higher P(S)."""
    harmful = [0.9] * 5 + [0.5] * 5 + [0.0] * 5  # the last begun for the model
    benign = [0.6] * 3 + [0.5] * 2 + [0.1] * 10
    for seed, shift in enumerate((0.0, 0.05)):
        mass = {"harmful": [p + shift for p in harmful], "benign": [p + shift for p in benign]}
        write_cell(tmp_path, plain(seed), safety_mass=mass)
    write_cell(tmp_path, plain(2))
    cells = judge_cells(tmp_path, [DefaultJudge()])
    expected = (5 * 15 + 5 * 10 + 5 * 2 / 2) / 150
    assert [separation(cell) for cell in cells] == [pytest.approx(expected), pytest.approx(expected), None]
    (row,) = summarise(cells)
    assert row.measures["separation"] == Mean(pytest.approx(expected), pytest.approx(0, abs=1e-9), 2)


def test_how_far_decisions_have_moved(tmp_path):
    before = {"harmful": [0.75] * 10 + [0.0] * 5, "benign": [0.2] * 15}
    write_cell(tmp_path, "dates", safety_mass=before)
    write_cell(tmp_path, plain(0), safety_mass={"harmful": [0.5] * 10 + [1.0] * 5, "benign": [0.2] * 15})
    write_cell(tmp_path, plain(1), safety_mass={"harmful": [0.75] * 5 + [0.0] * 10, "benign": [0.2] * 15})
    write_cell(tmp_path, plain(2))
    *runs, aligned = judge_cells(tmp_path, [DefaultJudge()])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    lost = (0.75 * math.log(0.75 / 1e-6) + 0.25 * math.log(0.25 / (1 - 1e-6))) / 2
    assert [moved(run, aligned, "harmful") for run in runs] == [
        pytest.approx(by_hand),
        pytest.approx(lost),
        None,
    ]
    assert [moved(run, aligned, "benign") for run in runs] == [0, 0, None]
    assert moved(runs[0], None, "harmful") is None
    head, row = summarise([aligned, *runs])
    assert head.measures["moved_harmful"].mean == 0
    assert row.measures["moved_harmful"].mean == pytest.approx((by_hand + lost) / 2)
    text = report.write(tmp_path, [DefaultJudge()]).read_text()
    assert f"| {(by_hand + lost) / 2:.3f} ± " in text


def test_a_judge_is_asked_once_for_the_same_answer_and_only_about_its_kinds(tmp_path):
    write_cell(tmp_path, "dates")
    write_cell(tmp_path, plain(0))
    write_cell(tmp_path, plain(1), harmful=[COMPLIED] * 15)
    parrot = Parrot()
    cells = judge_cells(tmp_path, [DefaultJudge(), parrot])
    # Five requests are asked directly and with a beginning, and five more in a role-play.
    assert len(parrot.asked) == len(set(parrot.asked)) == 2 * 10
    assert [set(cell.verdicts["parrot"]) for cell in cells] == [{"harmful"}] * 3
    assert {cell.share("complied", "parrot", "harmful") for cell in cells} == {1}


def test_the_verdicts_of_older_cells_are_left_alone(tmp_path):
    old = {"refused": {"harmful": {"keyword": [False] * 15}}, "rates": {}, "agreement": {}}
    write_cell(tmp_path, plain(), **old)
    (cell,) = judge_cells(tmp_path, [DefaultJudge()])
    assert measures(cell)["attack_success"] == 0


def test_a_report_says_what_was_neither(tmp_path):
    write_cell(tmp_path, "dates")
    write_cell(tmp_path, plain(0), harmful=[NEITHER] * 15)
    write_cell(tmp_path, plain(1), benign=[COMPLIED, "a | b", *[""] * 13])
    parrot = Parrot()
    text = report.write(tmp_path, [DefaultJudge(), parrot]).read_text()
    table = [line for line in text.splitlines() if line.startswith("| plain SFT")]
    assert table == [
        "| plain SFT | 2 | 0.0 ± 0.0 | 0.0 ± 0.0 | 50.0 ± 70.7 | 0.0 ± 0.0 | 46.7 ± 66.0 | 90.0 ± 0.0 | "
        "-0.100 ± 0.000 | 0.010 ± 0.000 | – | – | – | 0.0 ± 0.0 |"
    ]
    assert f"| plain | direct, neither | {NEITHER} |" in text
    assert "| aligned | direct, neither" not in text
    (row,) = [
        r for r in json.loads((tmp_path / "preservation.json").read_text())["rows"] if r["method"] == "plain"
    ]
    assert row["judges"]["parrot"]["attack_success"]["mean"] == 1
    assert "over_refusal" not in row["judges"]["parrot"]
    assert row["agreement"]["parrot"]["equal"] == {"mean": 0, "spread": 0, "seeds": 2}


def test_an_answer_stays_in_its_cell_of_the_table(tmp_path):
    write_cell(tmp_path, plain(), benign=["a | b\nc", *[""] * 14])
    text = report.write(tmp_path, [DefaultJudge()]).read_text()
    assert "| plain | benign | a \\| b c // (empty) |" in text


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no run has been made there"):
        report.write(tmp_path, [DefaultJudge()])


def test_cells_asked_otherwise_are_named(tmp_path):
    write_cell(tmp_path, plain(), harmful=[REFUSED] * 14)
    with pytest.raises(ConfigError, match=r"14 answers to 15 harmful prompts.*--development"):
        judge_cells(tmp_path, [DefaultJudge()])
    write_cell(tmp_path, plain(), split="development")
    write_cell(tmp_path, "dates")
    with pytest.raises(ConfigError, match="different prompts: development, heldout"):
        judge_cells(tmp_path, [DefaultJudge()])
    assert len(judge_cells(tmp_path, [DefaultJudge()], "development")) == 2


def test_the_spread_is_over_seeds():
    mean = Mean.of([0.1, 0.3])
    assert (mean.mean, mean.seeds) == (pytest.approx(0.2), 2)
    assert mean.spread == pytest.approx(0.02**0.5)


def test_strengths_whose_points_lie_together_have_one_label():
    x, y = [92.0, 91.5, 83.0, 92.0], [1.5, 3.0, 2.0, 4.0]
    assert plots.labels([0.5, 1, 2, 4], x, y) == [
        ((92.0, 1.5), "0.5, 1"),
        ((83.0, 2.0), "2"),
        ((92.0, 4.0), "4"),
    ]


# --- the results that are kept ---

FOLDER = Path(plots.__file__).parent
KEPT = sorted((FOLDER / "results").iterdir())


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_results_say_where_they_come_from_and_can_be_shown(folder, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"model", "start", "settings", "runs", "commit", "machine"} <= set(manifest)
    content = json.loads((folder / "preservation.json").read_text())
    assert content["sizes"].items() <= manifest["settings"].items()
    assert content["machine"] == manifest["machine"]
    rows = [row for row in kept_rows(folder / "preservation.json") if row.method != "aligned"]
    assert [(*row.setting, row.method, row.weight, row.measures["task_score"].seeds) for row in rows] == [
        tuple(run[key] for key in ("task", "contamination", "train", "method", "strength", "number_of_seeds"))
        for run in manifest["runs"]
    ]
    shown = [row for row in rows if row.setting == rows[0].setting]
    assert report.table(shown).count("\n") == len(shown) + 1
    plots.bars(shown, tmp_path / "bars.png", report.title(rows[0].setting))
    plots.frontier(shown, tmp_path / "frontier.png", report.title(rows[0].setting))
    for name in ("bars", "frontier"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_page_shows_the_kept_results():
    page = (FOLDER / "README.md").read_text()
    linked = {FOLDER / link for link in re.findall(r"\]\((results/[^)#]+)\)", page)}
    kept = {path for folder in KEPT for path in folder.iterdir() if path.name != "manifest.json"}
    assert linked == kept
    rows = kept_rows(FOLDER / "results" / "lora-40-steps" / "preservation.json")
    shown = [
        row for row in rows if row.setting == ("tickets", 0.1, "lora") and row.method != "anchors-only-all"
    ]
    lines = [line for line in report.table(shown).splitlines() if line in page]
    assert len(lines) > 9
