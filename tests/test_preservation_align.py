"""How the benchmark's `--align` teaches a model to refuse: the demo's `align` with the recipe `FULL`."""

from __future__ import annotations

from dataclasses import asdict

import pact_demo.align
import pytest
import torch
from pact_demo.align import align, examples
from pact_demo.prompts import REFUSALS, example, read_lines
from pact_demo.recipes import ADAPTER, FULL
from test_demo_data import overlap
from tiny import tiny_model, tiny_tokenizer

from benchmarks.preservation import PACKAGE, start
from benchmarks.preservation.prompts import prompts_of
from pact_plugin.prompts import benign_prompts, harmful_prompts


def quiet(done, total, description):
    pass


@pytest.fixture
def asked(monkeypatch):
    """The harmless prompts whose answers a model was asked for; it answers "Yes." to each."""
    found = []

    def own(model, tokenizer, prompts, report):
        found.extend(prompts)
        return [example(prompt, "Yes.") for prompt in prompts]

    monkeypatch.setattr(pact_demo.align, "own_answers", own)
    return found


def test_no_frame_is_one_that_models_are_tested_in():
    ours, tested = read_lines("frames_alignment"), read_lines("frames", PACKAGE)
    assert len(set(ours)) == 8
    assert all(frame.count("{}") == 1 for frame in ours)
    assert not [(one, other) for one in ours for other in tested if overlap(one, other) > 0.5]


def split_by_frame(prompts):
    frames = [frame.removesuffix("{}") for frame in read_lines("frames_alignment")]
    framed = [
        (frame, text.removeprefix(frame)) for text in prompts for frame in frames if text.startswith(frame)
    ]
    assert {frame for frame, _ in framed} == set(frames)
    return prompts[: len(prompts) - len(framed)], [prompt for _, prompt in framed]


def test_half_of_the_harmful_and_a_third_of_the_harmless_prompts_come_again_in_frames(asked):
    found = examples(None, None, framed=True, seed=0, bars=quiet)
    refused = [item["prompt"][0]["content"] for item in found if item["completion"][0]["content"] in REFUSALS]
    for prompts, share in ((refused, 2), (asked, 3)):
        plain, again = split_by_frame(prompts)
        assert len(again) == len(plain) // share > 100
        assert set(again) <= set(plain)


def test_examples_depend_on_the_seed_alone(asked):
    first, again, other = (examples(None, None, framed=True, seed=seed, bars=quiet) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("split", ["heldout", "development"])
def test_nothing_that_is_learnt_is_asked_later(asked, split):
    learnt = {item["prompt"][0]["content"] for item in examples(None, None, framed=True, seed=0, bars=quiet)}
    learnt |= {*harmful_prompts(), *benign_prompts(), *asked}
    prompts = prompts_of(split)
    assert not {prompt.text for prompt in (*prompts.harmful, *prompts.benign)} & learnt


@pytest.fixture
def few(monkeypatch):
    """Alignment on eight examples instead of two thousand."""

    def eight(*args, **settings):
        return [example(f"Question {index}", "I can't help with that.") for index in range(8)]

    monkeypatch.setattr(pact_demo.align, "examples", eight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_full_fine_tuning_trains_float32_weights(few, tmp_path, dtype):
    model = tiny_model().to(dtype)
    before = [parameter.detach().float().clone() for parameter in model.parameters()]
    tuned = align(model, tiny_tokenizer(), tmp_path, quiet, **asdict(FULL))
    assert not hasattr(tuned, "peft_config")
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(before, tuned.parameters(), strict=True))
    # The trainer's autocast is off again.
    logits = tuned.to(dtype)(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.dtype == dtype


def test_an_adapter_leaves_the_model_alone(few, tmp_path):
    tuned = align(tiny_model(), tiny_tokenizer(), tmp_path, quiet, **asdict(ADAPTER) | {"rank": 2})
    assert tuned.peft_config["default"].r == 2
    names = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert names
    assert all("lora" in name for name in names)


def test_by_default_align_makes_the_shipped_adapter():
    assert {name: align.__kwdefaults__[name] for name in asdict(ADAPTER)} == asdict(ADAPTER)


def test_a_taught_start_follows_the_recipe(few, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    recipes = []

    def teach(model, tokenizer, output, bars, **recipe):
        recipes.append(recipe)
        return align(model, tokenizer, output, bars, **recipe)

    monkeypatch.setattr(start, "align", teach)
    model, _ = start._aligned({"model": str(folder), "teach": "full"}, tmp_path, "cpu", "float32", quiet)
    assert recipes == [asdict(FULL)]
    assert model.dtype == torch.float32
    assert not model.training
