"""The preservation benchmark's variants: changes of the constraint and of its tokens that only it has."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer

from benchmarks.preservation import aligning, command, token_sets
from benchmarks.preservation import eased as easing
from benchmarks.preservation.constraints import HIGHEST, LOWEST, RATE, adapted, gates
from benchmarks.preservation.methods import DEFAULT, METHODS
from benchmarks.preservation.settings import PRESETS, Cell
from benchmarks.preservation.tasks import TASKS
from benchmarks.preservation.token_sets import TOKEN_SETS, kept_tokens
from benchmarks.preservation.training import Start, fine_tune
from examples.demo.prompts import example
from examples.demo.training import LINEAR_LAYERS
from pact_plugin import PactConfig, SafetyTokens
from pact_plugin.data.generation import user_prompt
from pact_plugin.errors import ConfigError
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.tokens.select import select_safety_tokens

VARIANTS = [name for name, method in METHODS.items() if method.variant]
STEP = replace(PRESETS["ci"], items=8, batch_size=4)
"""Two steps of the ci preset."""


def quiet(*args):
    pass


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny model that refuses `REQUESTS`, and its tokens; those of the sets are chosen from the same prompts."""
    folder, tokenizer = tmp_path_factory.mktemp("start"), tiny_tokenizer()
    tokenizer.padding_side = "left"
    model = tiny_aligned_model(max_position_embeddings=1024)
    tiny_model(max_position_embeddings=1024).save_pretrained(folder / "base")
    tokens = select_safety_tokens(model, tokenizer, harmful=REQUESTS, benign=QUESTIONS, top_k=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_sets, "harmful_prompts", lambda: REQUESTS)
        patch.setattr(token_sets, "benign_prompts", lambda: QUESTIONS)
        yield Start(model, tokenizer, tokens, [], folder, 10, str(folder / "base"))


def run(start, method, tmp_path, train="lora", sizes=STEP):
    cell = Cell("tickets", 0.25, train, method, METHODS[method].usual, 0)
    return fine_tune(cell, sizes, start, tmp_path, quiet)


def test_the_default_is_that_of_the_plugin():
    assert PactConfig(**DEFAULT, weight=METHODS["anchors-only"].usual).summary() == PactConfig().summary()


def test_the_start_is_taught_by_an_adapter_that_is_merged_as_often_as_it_says(monkeypatch, tmp_path):
    examples = [example(request, "I'm sorry, but I can't help with that.") for request in REQUESTS]
    monkeypatch.setattr(aligning, "lessons", lambda *_: examples)
    adapter = aligning.teach(tiny_model(), tiny_tokenizer(), tmp_path, quiet)
    assert {tensor.dtype for tensor in load_file(adapter / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }

    def taught(factor):
        monkeypatch.setattr(aligning, "FACTOR", factor)
        model = aligning.merged(tiny_model(), adapter)
        return {name: value - before[name] for name, value in model.state_dict().items()}

    before = tiny_model().state_dict()
    once, more = taught(1.0), taught(1.5)
    moved = [name for name, value in once.items() if value.abs().max() > 1e-4]
    assert {name.split(".")[-2] for name in moved} == set(LINEAR_LAYERS)
    for name in moved:
        torch.testing.assert_close(more[name], 1.5 * once[name], rtol=1e-3, atol=1e-6)


def test_what_is_eased_is_summed_by_position(start):
    items = [example(REQUESTS[0], "Sure, here is how."), example(QUESTIONS[0], REQUESTS[1])]
    wanted = torch.zeros(len(easing.SPANS))
    for item in items:
        prompt = user_prompt(start.tokenizer, item["prompt"][0]["content"])
        answer = start.tokenizer(item["completion"][0]["content"] + " And so on.")["input_ids"]
        for place, label in enumerate(answer):
            ids = torch.tensor([prompt + answer[:place]])
            with torch.no_grad():
                mass = (
                    start.model(ids).logits[0, -1].softmax(-1)[list(start.tokens.positive.ids)].sum().item()
                )
            span = max(i for i, begin in enumerate(easing.SPANS) if begin <= place)
            wanted[span] += 0 if label in start.tokens.positive.ids else mass / len(items)
    found = easing.eased(start, items, " And so on.")
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
    assert found[0] > 0.1
    rows = dict(easing.table(start, 2, quiet))
    assert {*TASKS, "harmful requests"} < rows.keys()
    assert all(len(row) == len(easing.SPANS) for row in rows.values())


def test_what_is_eased_is_asked_of_a_kept_start(tmp_path):
    with pytest.raises(ConfigError, match="no aligned model is kept there"):
        command.eased(items=1, output=tmp_path)


def test_fewer_prompts_for_anchors_are_half_of_each_kind(start, tmp_path):
    config = METHODS["anchors-only-pool128"].constrained(2.0, start.tokens, tmp_path)
    assert [len(prompts) for prompts in anchor_prompts(config.anchor_prompts).values()] == [64, 64]
    usual = METHODS["anchors-only"].constrained(2.0, start.tokens, tmp_path)
    assert config.summary() | {"anchor_prompts": "both"} == usual.summary()


@pytest.mark.parametrize("method", VARIANTS)
def test_every_variant_trains(start, tmp_path, method):
    model, noted = run(start, method, tmp_path)
    assert (noted["trained_items"] < STEP.items) == METHODS[method].drops
    before = start.model.state_dict()
    changed = [not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()]
    assert any(changed) or noted["trained_items"] <= STEP.batch_size  # a single step is one of warm-up
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_full_fine_tuning_keeps_what_each_method_stores_of_the_aligned_model_apart(start, tmp_path):
    for method in ("anchors", "published", "anchors-first8", "anchors-only-k8", "anchors-only"):
        run(start, method, tmp_path, "full")


def test_the_weight_adapts_to_the_divergence():
    assert adapted(2.0, 0.01, 0.01) == pytest.approx(2)
    assert adapted(2.0, 0.02, 0.01) == pytest.approx(2 * math.exp(RATE))
    assert adapted(2.0, 0.0, 0.01) == pytest.approx(2 * math.exp(-RATE))
    assert adapted(2.0, 5.0, 0.01) == pytest.approx(HIGHEST)
    assert adapted(LOWEST, 0.0, 0.01) == pytest.approx(LOWEST)


def test_the_weight_is_adapted_after_every_step_by_the_divergence_in_it(start, tmp_path, monkeypatch):
    seen = []

    def watched(weight, divergence, target):
        seen.append((weight, divergence, target))
        return adapted(weight, divergence, target)

    monkeypatch.setattr("benchmarks.preservation.constraints.adapted", watched)
    _, noted = run(start, "anchors-adaptive", tmp_path, sizes=replace(STEP, items=12, lora_rate=0.05))
    (first, second, third) = seen
    assert first == (2.0, pytest.approx(0, abs=1e-6), 0.01)  # nothing has been learnt
    assert second == (
        pytest.approx(2 * math.exp(-RATE), rel=1e-3),
        pytest.approx(0, abs=1e-6),
        0.01,
    )  # warm-up
    assert third[0] == pytest.approx(2 * math.exp(-2 * RATE), rel=1e-3)
    assert third[1] > 1e-4
    assert noted["last_weight"] == pytest.approx(adapted(*third))
    assert "last_weight" not in run(start, "anchors", tmp_path)[1]


@pytest.mark.parametrize("name", TOKEN_SETS)
def test_a_token_set_is_made_once_and_kept(start, monkeypatch, name):
    made = start.tokens_of(name)
    assert len(made) == TOKEN_SETS[name].top_k
    assert made.provenance["contrast"] == TOKEN_SETS[name].contrast
    assert SafetyTokens.load(start.folder / f"tokens-{name}.safetensors").digest == made.digest
    monkeypatch.setattr(token_sets, "select_safety_tokens", None)
    assert start.tokens_of(name).digest == made.digest
    assert start.tokens_of(None) is start.tokens


def test_the_base_contrast_needs_the_model_before_alignment(start, tmp_path):
    with pytest.raises(ConfigError, match=r"base_model: .*--base-model"):
        kept_tokens("base", start.model, start.tokenizer, tmp_path, 10, None)


def test_later_tokens_are_held_as_far_as_the_aligned_model_refuses_at_the_first():
    mass = torch.tensor([0.9, 0.4, 0.3, 0.1, 0.8])
    index, response = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(gates(mass, index, response), torch.tensor([1.0, 0.9, 0.9, 1.0, 0.1]))
    # A response whose first token is no position (its document starts there) is not held after it.
    assert gates(mass[1:3], index[1:3], response[1:3]).tolist() == [0.0, 0.0]
    assert gates(mass[:0], index[:0], response[:0]).shape == (0,)
