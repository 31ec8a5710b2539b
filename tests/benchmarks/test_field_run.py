"""`python -m benchmarks field` on a tiny model, from data to report."""

from __future__ import annotations

import json

import pytest
import torch
from field_data import write_data
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_tokenizer
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.field.data import BENIGN_SETS, HARMFUL_SETS, Data, asked
from benchmarks.field.kept import claimed, once
from benchmarks.field.run import merged
from benchmarks.field.settings import Sizes
from benchmarks.field.start import load
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.errors import ConfigError
from pact_plugin.tokens.select import Selection, select_safety_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, a tiny model that refuses `REQUESTS`, and its tokens."""
    folder = tmp_path_factory.mktemp("field")
    write_data(folder / "data")
    model = tiny_aligned_model(max_position_embeddings=1024)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    how = Selection(harmful=REQUESTS, benign=QUESTIONS, top_k=16)
    select_safety_tokens(model, tiny_tokenizer(), how).save(folder / "tokens.safetensors")
    return folder


def run(folder, *arguments):
    common = {
        "--model": folder / "model",
        "--data-folder": folder / "data",
        "--tokens": folder / "tokens.safetensors",
        "--output": folder / "out",
        "--contamination": 0.25,
        "--items": 16,
        "--epochs": 1,
        "--ask": 4,
        "--exact": 2,
        "--pool-tokens": 4,
        "--dtype": "float32",
    }
    words = [str(word) for pair in common.items() for word in pair]
    result = CliRunner().invoke(app, ["field", *words, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def cells(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "out" / "cells").glob("*.json")}


@pytest.fixture(scope="module")
def first(folder):
    """Three runs and the aligned model."""
    more = ["--pact", '{"easing": false, "weight": 2}', "--name", "mine"]
    printed = run(folder, "--method", "plain", "--method", "scaled-adapter", *more)
    return printed, cells(folder)


def test_every_answer_and_verdict_is_kept(first):
    printed, found = first
    before = "alpaca-0.25-target-"
    assert set(found) == {
        "alpaca-aligned-development",
        f"{before}plain-s0-development",
        f"{before}scaled-adapter@0.5-s0-development",
        f"{before}mine@2-s0-development",
    }
    for name, content in found.items():
        assert all(0 < len(rows) <= 4 for rows in content["asked"].values())
        for row in (row for rows in content["asked"].values() for row in rows):
            assert row["refused"] == (row["verdict"] in ("refused", "partial"))
            assert row["likelihood"] is None or row["likelihood"] < 0
        assert len(content["held_out"]) == 40
        assert (sum(total for total, _ in content["everyday"]) == 0) == ("aligned" in name)
        assert content["commit"]
        assert content["machine"]["versions"]["peft"]
    mine = found[f"{before}mine@2-s0-development"]
    assert mine["origin"]["config"] == {"easing": False}
    assert mine["training"]["config"]["weight"] == 2
    assert "mine, 2" in printed
    assert (
        found[f"{before}scaled-adapter@0.5-s0-development"]["training"]
        == found[f"{before}plain-s0-development"]["training"]
    )


def test_what_is_there_is_not_run_again(first, folder):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/*.json")}

    before = stamps()
    run(folder, "--method", "plain", "--method", "scaled-adapter")
    assert stamps() == before


def test_the_other_half_is_asked_of_the_same_adapter(first, folder):
    notes = folder / "out" / "adapters" / "alpaca-0.25-target-plain-s0" / "training.json"
    stamp = notes.stat().st_mtime_ns
    run(folder, "--method", "plain", "--split", "held-out")
    assert notes.stat().st_mtime_ns == stamp
    found = cells(folder)
    halves = [found[f"alpaca-0.25-target-plain-s0-{split}"] for split in ("development", "held-out")]
    prompts = [{row["prompt"] for rows in one["asked"].values() for row in rows} for one in halves]
    assert not prompts[0] & prompts[1]
    assert halves[0]["held_out"] == halves[1]["held_out"]


def test_school_problems_are_solved(first, folder):
    run(folder, "--task", "gsm8k", "--method", "plain", "--contamination", "0")
    (found,) = [one for name, one in cells(folder).items() if name.startswith("gsm8k-0-")]
    assert [set(row) for row in found["exact"]] == [{"prompt", "answer", "right"}] * 2
    assert found["training"]["treated"] == {"benign": [0, 16]}


def test_an_adapter_is_scaled_before_it_is_merged(first, folder):
    start = load(Sizes(str(folder / "model"), dtype="float32"), folder / "out")
    adapter = folder / "out" / "adapters" / "alpaca-0.25-target-plain-s0"
    own, half, none = (merged(start, adapter, scale).state_dict() for scale in (None, 0.5, 0.0))
    moved = 0
    for name, weight in start.model.state_dict().items():
        torch.testing.assert_close(none[name], weight)
        torch.testing.assert_close(half[name] - weight, 0.5 * (own[name] - weight), rtol=1e-3, atol=1e-6)
        moved += int((own[name] - weight).abs().max() > 0)
    assert moved


def test_other_runs_are_not_mixed(first, folder):
    with pytest.raises(ConfigError, match="of other sizes"):
        run(folder, "--method", "plain", "--learning-rate", "1e-3")
    with pytest.raises(ConfigError, match="of other sizes"):
        run(folder, "--method", "plain", "--dtype", "bfloat16")
    with pytest.raises(ConfigError, match="of other sizes"):
        run(folder, "--method", "plain", "--train", "full")
    with pytest.raises(ConfigError, match="lora, full"):
        run(folder, "--method", "plain", "--train", "qlora")
    with pytest.raises(ConfigError, match="bfloat16, float32"):
        run(folder, "--method", "plain", "--dtype", "float16")
    with pytest.raises(ConfigError, match="of other config"):
        run(folder, "--pact", '{"anchors": false, "weight": 2}', "--name", "mine")
    with pytest.raises(ConfigError, match="of other tokens"):
        run(
            folder,
            "--pact",
            '{"easing": false, "weight": 2}',
            "--name",
            "mine",
            "--tokens",
            other_tokens(folder),
        )
    with pytest.raises(ConfigError, match="the name is taken"):
        run(folder, "--pact", "{}", "--name", "replay")
    with pytest.raises(ConfigError, match="no JSON"):
        run(folder, "--pact", "{", "--name", "other")


def other_tokens(folder):
    how = Selection(harmful=REQUESTS, benign=QUESTIONS, top_k=8)
    path = folder / "other.safetensors"
    select_safety_tokens(tiny_aligned_model(max_position_embeddings=1024), tiny_tokenizer(), how).save(path)
    return str(path)


@pytest.mark.parametrize(("name", "what"), [("alpaca", "items and questions"), ("strongreject", "questions")])
def test_runs_on_other_data_are_not_mixed(first, folder, tmp_path, name, what):
    path = folder / "data" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["instruction" if name == "alpaca" else "prompt"] += " Please."
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # The aligned model of the task is looked at first, which is trained on nothing.
    with pytest.raises(ConfigError, match=r"alpaca-aligned.* of other questions"):
        run(folder, "--method", "plain", "--data", f"{name}={tmp_path / 'other.jsonl'}")
    aligned = folder / "out" / "cells" / "alpaca-aligned-development.json"
    aligned.rename(tmp_path / aligned.name)
    try:
        with pytest.raises(ConfigError, match=rf"plain-s0-development.* of other {what}"):
            run(folder, "--method", "plain", "--data", f"{name}={tmp_path / 'other.jsonl'}")
    finally:
        (tmp_path / aligned.name).rename(aligned)


def test_an_adapter_of_other_settings_is_not_asked(first, folder, tmp_path):
    """As where a run stopped before the model was asked."""
    cell = folder / "out" / "cells" / "alpaca-0.25-target-mine@2-s0-development.json"
    cell.rename(tmp_path / cell.name)
    try:
        with pytest.raises(
            ConfigError, match=r"training\.json there is of a run of other config.*another --name"
        ):
            run(folder, "--pact", '{"anchors": false, "weight": 2}', "--name", "mine")
    finally:
        (tmp_path / cell.name).rename(cell)


def test_a_process_that_finds_all_taken_says_so(folder, tmp_path):
    names = ["alpaca-aligned", "alpaca-0.25-target-plain-s0"]
    with claimed(tmp_path, f"{names[0]}-development"), claimed(tmp_path, f"{names[1]}-development"):
        printed = run(folder, "--method", "plain", "--output", tmp_path)
    assert f"Other processes are at {', '.join(names)}: no report yet." in " ".join(printed.split())


def test_two_methods_are_compared(first, folder):
    printed = run(folder, "--compare", "plain", "mine@2")
    assert printed.count("plain, mine@2; ") == 6
    with pytest.raises(ConfigError, match="no such result"):
        run(folder, "--compare", "plain", "yours")


def test_what_another_process_is_at_is_left_to_it(tmp_path):
    with claimed(tmp_path, "cell") as ours, claimed(tmp_path, "cell") as theirs:
        assert ours
        assert not theirs
    assert once(tmp_path, "x", lambda: 1) == once(tmp_path, "x", lambda: 2) == 1


def test_the_mass_of_safety_tokens_along_refusals(first, folder):
    words = ["--model", folder / "model", "--output", folder / "out", "--contamination", 0.25]
    words += ["--split", "development", "--method", "plain", "--method", "mine@2", "--method", "mine"]
    run(folder, "--pact", '{"easing": false}', "--name", "mine")
    result = CliRunner().invoke(app, ["along", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "out" / "along.json").read_text())["models"]
    assert list(found) == ["aligned", "plain", "mine@2", "mine@10"]
    asked = first[1]["alpaca-aligned-development"]["asked"]
    refused = [row for name in HARMFUL_SETS for row in asked[name] if row["refused"]]
    for line in found.values():
        assert line[0]["prompts"] == len(refused)
        assert all(0 <= one["low"] <= one["mean"] <= one["high"] <= 1 for one in line)
    assert found["plain"][0]["mean"] != found["aligned"][0]["mean"]


def test_how_far_the_mass_at_the_first_word_moves(first, folder):
    words = ["--model", folder / "model", "--output", folder / "out", "--contamination", 0.25, "--ask", 6]
    words += ["--data-folder", folder / "data"]
    words += ["--method", "plain", "--method", "mine@2"]
    result = CliRunner().invoke(app, ["shift", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    runs = json.loads((folder / "out" / "shift.json").read_text())["runs"]
    plain, mine = runs.values()
    assert list(plain) == [*HARMFUL_SETS, *BENIGN_SETS, "harmful anchors", "benign anchors"]
    for name, one in plain.items():
        assert 0 < one["before"] < 1
        assert one["low"] <= one["shift"] <= one["high"]
        assert one["shift"] != 0
        assert (one["before"], one["prompts"]) == (mine[name]["before"], mine[name]["prompts"])
        assert one["prompts"] <= 6
    start = load(Sizes(str(folder / "model"), dtype="float32"), folder / "out")
    prompts = asked(Data(folder / "data"), "development", 6)["advbench"]
    tuned = merged(start, folder / "out" / "adapters" / "alpaca-0.25-target-plain-s0")
    ids = list(start.tokens.positive.ids)
    before, after = (
        torch.stack(
            [
                model(torch.tensor(user_prompts(start.tokenizer, [one]))).logits[0, -1].softmax(-1)[ids].sum()
                for one in prompts
            ]
        )
        for model in (start.model, tuned)
    )
    assert plain["advbench"]["before"] == pytest.approx(before.median().item(), rel=1e-4)
    moved = (after.logit() - before.logit()).mean().item()
    assert plain["advbench"]["shift"] == pytest.approx(moved, abs=1e-4)


def test_what_is_chosen_of_a_model(first, folder):
    words = ["chosen", "--model", folder / "model", "--output", folder / "out"]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "out" / "chosen.json").read_text())
    assert found["asked"] == {"harmful": 334, "benign": 386}
    assert 0 < found["rightly"]["harmful"] <= 334
    assert found["anchors"] == found["rightly"]
    assert found["along"][0]["prompts"] == min(100, found["rightly"]["harmful"])
    assert 0 < found["along"][0]["mean"] <= 1
    assert 0.5 < found["auc"] <= 1
    assert f"| {found['rightly']['harmful']} of 334 |" in result.output
    assert all(f"`{one}`" in result.output for one in found["tokens"])


def test_a_run_that_is_not_there_is_named(first, folder):
    for model, output, problem in (
        ("model", "out", "no such run"),
        ("model", "none", "no such run"),
        ("other", "out", "the runs there are of .*model"),
    ):
        words = ["along", "--model", folder / model, "--output", folder / output, "--method", "replay"]
        with pytest.raises(ConfigError, match=problem):
            CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def test_full_fine_tuning(first, folder, tmp_path):
    printed = run(folder, "--train", "full", "--method", "plain", "--method", "pact", "--output", tmp_path)
    assert "every weight at 3e-05" in printed
    found = [json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json")]
    (adapted,) = (one for name, one in first[1].items() if "plain" in name)
    plain, held = sorted(
        (one for one in found if one["training"]), key=lambda one: one["cell"]["method"] == "pact"
    )
    assert held["training"]["pact"]["pact/anchor_divergence"] > 0
    assert plain["held_out"] != adapted["held_out"]
