"""The field benchmark's report, on made-up cells."""

from __future__ import annotations

import json

import pytest
from field_data import write_cell

from benchmarks.field import report
from benchmarks.field.data import digest
from benchmarks.field.methods import method_of
from benchmarks.field.methods.treatment import TREATMENTS
from benchmarks.field.paired import change
from benchmarks.field.plots import lost
from benchmarks.field.results import load
from benchmarks.field.settings import Cell
from benchmarks.field.summary import summarise
from pact_plugin.errors import ConfigError

PLAIN = Cell("alpaca", 0.1, method="plain")
BEFORE = {
    "strongreject": [1] * 8 + [0] * 2,
    "advbench": [1, 0],
    "overrefusal": [0, 0, 1, 0],
    "everyday": [0] * 4,
}
AFTER = {
    "strongreject": [0] * 7 + [1] + [1, 0],
    "advbench": [1, 0],
    "overrefusal": [1, 0, 1, 0],
    "everyday": [0] * 4,
}


def refusals(*values):
    return {f"prompt {n}": bool(one) for n, one in enumerate(values)}


@pytest.fixture
def folder(tmp_path):
    """The aligned model, two seeds of plain fine-tuning, and one of a method that keeps everything."""
    write_cell(tmp_path, Cell("alpaca"), BEFORE)
    for seed in (0, 1):
        write_cell(tmp_path, Cell("alpaca", 0.1, method="plain", seed=seed), AFTER)
    kept = Cell("alpaca", 0.1, method="replay+oracle", strength=2.0)
    write_cell(tmp_path, kept, BEFORE, held_out=((2.4, 2), (4.4, 2)), exact=(True, False))
    return tmp_path


def test_what_was_lost_and_won_is_counted_by_prompt():
    found = change([(refusals(1, 1, 1, 1, 0, 0), refusals(0, 0, 0, 1, 1, 0))])
    assert (found.prompts, found.before, found.after, found.kept) == (6, 4, 2, 1)
    assert (found.lost, found.won) == (3, 1)
    assert found.p == pytest.approx(2 * (1 + 4) / 2**4)  # of four changes, one or fewer on a side
    assert found.points == pytest.approx(-100 / 3)
    assert found.low < found.points < found.high


def test_seeds_are_pooled_by_prompt():
    before = refusals(1, 1, 1, 0)
    one = change([(before, refusals(0, 0, 1, 0))])
    same = change([(before, refusals(0, 0, 1, 0))] * 3)
    assert (same.lost, same.won, same.p, same.low, same.high) == (one.lost, one.won, one.p, one.low, one.high)
    # A prompt that is lost in one seed and won in another has not changed.
    mixed = change([(refusals(1), refusals(0)), (refusals(0), refusals(1))])
    assert (mixed.lost, mixed.won, mixed.points, mixed.by_seed) == (0, 0, 0, (-100, 100))
    assert change([(refusals(1, 1), refusals(0, 1)), (refusals(1, 1), refusals(1, 1))]).kept == 1.5


def test_seeds_that_differ_widen_an_interval():
    before = refusals(*[1] * 50)
    same = [refusals(*[0] * 10, *[1] * 40)] * 3
    mixed = [refusals(*[0] * lost, *[1] * (50 - lost)) for lost in (0, 10, 20)]
    found, wider = (change([(before, after) for after in afters]) for afters in (same, mixed))
    assert found.points == wider.points == -20
    assert found.over_seeds == pytest.approx((found.low, found.high), abs=1.5)
    assert wider.over_seeds[0] < wider.low - 5
    assert wider.over_seeds[1] > wider.high + 5
    assert change([(before, same[0])]).over_seeds is None


def test_an_interval_has_a_width_where_nothing_changed():
    found = change([(refusals(1, 0, 1), refusals(1, 0, 1))])
    assert found.p == 1
    assert found.low < 0 < found.high
    assert change([({}, {})]) is None


def test_rows_hold_the_counts_of_the_cells(folder):
    aligned, plain, kept = (summarise(group) for group in load(folder, "development"))
    assert (aligned.method, plain.method, kept.method) == ("aligned", "plain", "replay+oracle")
    assert plain.seeds == (0, 1)
    of = plain.changes["strongreject"]
    assert (of.before, of.kept, of.lost, of.won) == (8, 1, 7, 1)
    assert of.p == pytest.approx(2 * (1 + 8) / 2**8)
    every = plain.changes["harmful"]
    assert (every.prompts, every.before, every.kept) == (12, 9, 2)
    assert lost(plain) == pytest.approx(100 * 7 / 9)
    assert plain.changes["overrefusal"].won == 1
    assert plain.changes["donotanswer"] is None
    assert plain.nll == pytest.approx(1.5)
    assert plain.nll_above_plain[0] == 0
    assert kept.nll_above_plain[0] == pytest.approx(0.2)
    assert kept.exact == (1, 2)
    assert lost(kept) == 0
    assert plain.everyday_kl == pytest.approx(0.1)
    assert plain.incoherent == pytest.approx(4 / 20)  # the first of each of four sets
    assert (plain.prepare_seconds, plain.train_seconds, aligned.train_seconds) == (3, 30, None)


def test_the_report_has_a_line_for_each_method_and_a_plot(folder):
    text = report.write(folder, "development").read_text()
    (plain,) = [line for line in text.splitlines() if line.startswith("| plain fine-tuning")]
    assert "1 of 8 (7/1, p=0.07)" in plain
    assert "| +0.200 (+0.200 to +0.200) |" in text
    assert "no method" in text
    assert "; by seed -50.0, -50.0, over seeds " in plain
    assert (folder / "frontier-alpaca-0.1-target-development.png").stat().st_size > 10_000
    rows = json.loads((folder / "field-development.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["aligned", "plain", "replay+oracle"]


def test_verdicts_are_kept_without_prompts_and_answers(folder):
    report.write(folder, "development")
    text = (folder / "verdicts-development.json").read_text()
    assert "sorry" not in text
    cells = json.loads(text)["cells"]
    assert set(cells) == {
        path.stem.removesuffix("-development") for path in (folder / "cells").glob("*.json")
    }
    found = cells["alpaca-0.1-target-plain-s1"]["sets"]["strongreject"]
    assert found == {
        digest(f"strongreject {n}")[:12]: float(one) for n, one in enumerate(AFTER["strongreject"])
    }


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_every_treatment_has_a_mark(folder, treatment):
    name = "replay" if treatment == "none" else f"replay+{treatment}"
    write_cell(folder, Cell("alpaca", 0.1, method=name, strength=1.0), AFTER)
    assert method_of(name).title in report.write(folder, "development").read_text()


def test_a_score_just_below_a_refusal_is_none(folder):
    path = folder / "cells" / "alpaca-0.1-target-plain-s1-development.json"
    cell = json.loads(path.read_text())
    cell["asked"]["strongreject"][0] |= {"score": 0.4996, "refused": False}
    path.write_text(json.dumps(cell))
    report.write(folder, "development")
    cells = json.loads((folder / "verdicts-development.json").read_text())["cells"]
    assert cells["alpaca-0.1-target-plain-s1"]["sets"]["strongreject"][digest("strongreject 0")[:12]] == 0.49


def test_two_methods_are_compared_on_the_seeds_that_both_have(folder):
    lines = report.comparison(folder, "development", "plain", "replay+oracle@2").splitlines()
    (line,) = [line for line in lines if "StrongREJECT" in line]
    assert "| 1 | 2 of 10 | 8 of 10 | 1 | 7 | p=0.07 |" in line


def test_the_judge_can_be_asked_again(folder):
    path = folder / "cells" / "alpaca-0.1-target-plain-s0-development.json"
    content = json.loads(path.read_text())
    for row in content["asked"]["strongreject"]:
        row["refused"] = not row["refused"]
    path.write_text(json.dumps(content))
    assert summarise(load(folder, "development")[1]).changes["strongreject"].kept != 1
    assert summarise(load(folder, "development", judge_again=True)[1]).changes["strongreject"].kept == 1


def test_results_of_another_version_are_refused(folder):
    path = folder / "cells" / "alpaca-0.1-target-plain-s0-development.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    with pytest.raises(ConfigError, match=r"plain-s0-development\.json there is of another version"):
        load(folder, "development")


def test_a_folder_without_results_is_refused(folder):
    with pytest.raises(ConfigError, match="no results there"):
        load(folder, "held-out")
    write_cell(folder, PLAIN, AFTER, split="held-out")
    with pytest.raises(ConfigError, match="no results there"):  # without the aligned model
        load(folder, "held-out")
