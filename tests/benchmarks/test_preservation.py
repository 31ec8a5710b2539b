"""The preservation benchmark: its own mathematics, its bookkeeping, and runs of it in small.

On a tiny model, but for one run of every method from the real one, which .ci/run makes.
"""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from pact_transformers.loading import SMOLLM2
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_tokenizer
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.preservation import start
from benchmarks.preservation.methods import COMPARED, METHODS
from benchmarks.preservation.rivals import full_kl, tokenwise_loss
from benchmarks.preservation.run import check_sizes
from benchmarks.preservation.settings import PRESETS, cells
from benchmarks.preservation.start import load_start
from examples.demo import prepare
from pact_plugin.errors import ConfigError


def test_the_kl_is_that_of_torch():
    reference, student = torch.randn(2, 5, 11, dtype=torch.float64)
    ours = full_kl(reference, student)
    for row in range(5):
        p, q = (torch.distributions.Categorical(logits=x[row]) for x in (reference, student))
        assert ours[row].item() == pytest.approx(torch.distributions.kl_divergence(p, q).item())


def test_the_tokenwise_loss_is_cross_entropy_at_the_reference_and_saturates_where_beta_is_large():
    """Equation 3 of Qi et al.: at p = p_ref the gradient of every β is that of the cross-entropy."""
    reference = torch.full((7,), -2.0, dtype=torch.float64)
    logprob = reference.clone().requires_grad_()
    index = torch.arange(7)
    loss = tokenwise_loss(logprob, reference, index)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    assert torch.allclose(gradient, torch.full_like(gradient, -1.0))
    assert loss[0].item() == pytest.approx(2 / 0.5 * math.log(2))
    further = (reference + 1.5).requires_grad_()
    (gradient,) = torch.autograd.grad(tokenwise_loss(further, reference, index).sum(), further)
    sigmoid = 1 / (1 + math.exp(2.0 * 1.5))
    assert gradient[1:5].tolist() == pytest.approx([-2 * sigmoid] * 4)
    assert gradient[5:].tolist() == pytest.approx([-2 / (1 + math.exp(0.15))] * 2)


def test_the_usual_strengths_come_first_and_every_seed_of_them():
    found = cells(["tickets"], [0.1], ["lora"], ["plain", "easing"], [0, 1], curves=True)
    assert [(c.method, c.weight, c.seed) for c in found[:4]] == [
        ("plain", None, 0),
        ("easing", 2.0, 0),
        ("plain", None, 1),
        ("easing", 2.0, 1),
    ]
    assert {c.weight for c in found[4:]} == set(METHODS["easing"].weights) - {2.0}
    assert len(set(found)) == len(found) == len({c.name for c in found})


def test_other_strengths_than_a_methods_own():
    found = cells(["tickets"], [0.1], ["lora"], ["plain", "easing"], [0], curves=False, strengths=(8.0, 3.0))
    assert [(c.method, c.weight) for c in found] == [("plain", None), ("easing", 8.0), ("easing", 3.0)]


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match="plian"):
        cells(["tickets"], [0.1], ["lora"], ["plian"], [0], curves=False)


def test_every_strength_of_a_method_is_on_its_curve():
    for method in METHODS.values():
        assert (method.usual is None) == (not method.weights)
        assert method.usual is None or method.usual in method.weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny model that refuses `REQUESTS`, of which its tokens are chosen."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_aligned_model(max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, start):
            patch.setattr(module, "harmful_prompts", lambda: REQUESTS)
        patch.setattr(prepare, "benign_prompts", lambda: QUESTIONS)
        yield folder


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """Every method that is compared, once, in small."""
    output = tmp_path_factory.mktemp("preservation")
    return output, run(output, tiny, *named(COMPARED))


def named(methods):
    return [word for name in methods for word in ("--method", name)]


def run(output, model, *arguments):
    common = ["--preset", "ci", "--task", "tickets", "--contamination", "0.25", "--train", "lora"]
    common += [
        "--seed",
        "0",
        "--no-curves",
        "--output",
        str(output),
        "--device",
        "cpu",
        "--model",
        str(model),
    ]
    result = CliRunner().invoke(app, ["preservation", *common, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {path.stem: json.loads(path.read_text()) for path in (output / "cells").glob("*.json")}


def assert_measured(output, found, methods=COMPARED):
    """The methods have run, and everything is measured and reported."""
    assert {item["cell"]["method"] for item in found.values()} == {"aligned", *methods}
    for item in found.values():
        assert {kind: len(answers) for kind, answers in item["answers"].items()} == {
            "harmful": 12,
            "benign": 12,
        }
        assert not {"refused", "rates", "agreement"} & set(item)
        assert {kind: len(mass) for kind, mass in item["safety_mass"].items()} == {
            "harmful": 12,
            "benign": 12,
        }
        assert all(0 <= p <= 1 for mass in item["safety_mass"].values() for p in mass)
        assert item["kl_everyday"] >= 0
    assert found["tickets-aligned"]["kl_everyday"] == 0
    # The first step's rate is 0, and `drop` may be left with no more, by how a machine's model came to refuse.
    one_step = PRESETS["ci"].batch_size
    moved = [item for item in found.values() if item["cell"].get("trained_items", 0) > one_step]
    assert len(moved) >= len(set(methods) - {"drop"})
    assert all(item["kl_everyday"] > 0 for item in moved)
    table = (output / "preservation.md").read_text()
    assert all(METHODS[name].title in table for name in methods)
    assert "goal met on" in table
    for plot in ("preservation-tickets-0.25-lora.png", "preservation-tickets-0.25-lora-methods.png"):
        assert (output / plot).stat().st_size > 10_000


def assert_each_as_it_should(found):
    """What each method logs, and how many items it trains on."""
    logged = {
        item["cell"]["method"]: set(item["cell"]["logged"])
        for item in found.values()
        if "logged" in item["cell"]
    }
    assert not {"plain", "kl"} & set(logged)
    assert logged["published"] == logged["confidence"] == {"pact/loss", "pact/divergence"}
    assert logged["anchors-only"] == {"pact/loss", "pact/anchor_divergence", "pact/eased"}
    assert logged["anchors"] == logged["anchors-only"] | {"pact/divergence"}
    items = {item["cell"]["method"]: item["cell"].get("trained_items") for item in found.values()}
    assert items["drop"] < items["plain"] < items["interleaved"]


@pytest.mark.real_model
def test_it_runs_from_the_real_model_that_the_kept_adapter_aligns(tmp_path):
    methods = ("plain", "anchors", "published")  # a tiny model runs every one
    assert_measured(tmp_path, run(tmp_path, SMOLLM2, *named(methods), "--align", "--items", "16"), methods)
    kept = json.loads((tmp_path / "start" / "start.json").read_text())
    assert len(kept["refusals"]) >= PRESETS["ci"].selection_prompts - 2
    assert not (tmp_path / "start" / "aligning").exists()  # nothing was trained


def test_every_method_runs_and_is_measured(first):
    assert_measured(*first)
    assert_each_as_it_should(first[1])


def test_a_start_is_not_taken_for_another(first, tmp_path):
    arguments = {"device": "cpu", "dtype": None, "bars": lambda *_: None}
    with pytest.raises(ConfigError, match="another start"):
        load_start(SMOLLM2, PRESETS["ci"], first[0] / "start", align=True, **arguments)
    with pytest.raises(ConfigError, match="Add --align"):
        load_start(SMOLLM2, PRESETS["ci"], tmp_path, align=False, anew=True, **arguments)


def test_a_second_call_makes_only_what_is_missing_and_the_same_run_gives_the_same_numbers(
    first, tiny, tmp_path
):
    output, found = first
    shutil.copytree(output / "start", tmp_path / "start")
    again = run(tmp_path, tiny, "--method", "plain", "--method", "easing")
    names = [name for name, item in found.items() if item["cell"]["method"] in ("aligned", "plain", "easing")]
    assert sorted(again) == sorted(names)
    for name in names:
        for item in (again[name], found[name]):
            item.pop("machine"), item.pop("seconds", None)
        assert again[name] == found[name]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    run(tmp_path, tiny, "--method", "plain", "--method", "easing")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps


def test_runs_of_another_size_are_not_mixed(first, tiny):
    output, found = first
    with pytest.raises(ConfigError, match=r"another size.*--items"):
        run(output, tiny, "--method", "plain", "--items", "16")
    assert {path.stem for path in (output / "cells").glob("*.json")} == set(found)


def test_what_the_aligned_model_answered_serves_runs_of_every_size_and_rate(first, tiny, tmp_path):
    output, _ = first
    shutil.copytree(output / "start", tmp_path / "start")
    (tmp_path / "cells").mkdir()
    kept = tmp_path / "cells" / "tickets-aligned.json"
    shutil.copy(output / "cells" / kept.name, kept)
    stamp = kept.stat().st_mtime_ns
    again = run(tmp_path, tiny, "--method", "plain", "--items", "16", "--learning-rate", "1e-4")
    assert kept.stat().st_mtime_ns == stamp
    assert [item["sizes"]["items"] for item in again.values()].count(16) == len(again) - 1
    table = json.loads((tmp_path / "preservation.json").read_text())
    assert table["sizes"]["items"] == 16
    for cell in set(kept.parent.iterdir()) - {kept}:
        cell.unlink()
    check_sizes(tmp_path, replace(PRESETS["ci"], items=1, lora_rate=1.0))
    with pytest.raises(ConfigError, match=r"tickets-aligned.*another size"):
        check_sizes(tmp_path, replace(PRESETS["ci"], test_items=9))


def test_full_fine_tuning(first, tiny, tmp_path):
    shutil.copytree(first[0] / "start", tmp_path / "start")
    found = run(tmp_path, tiny, "--train", "full", "--method", "easing")
    (item,) = [
        item
        for item in found.values()
        if item["cell"]["method"] == "easing" and item["cell"]["train"] == "full"
    ]
    assert item["kl_everyday"] > 0
