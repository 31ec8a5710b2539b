"""The preservation benchmark's variants, its start, and what easing takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer

from benchmarks.preservation import aligning
from benchmarks.preservation.methods import DEFAULT, METHODS
from benchmarks.preservation.settings import PRESETS, Cell
from benchmarks.preservation.training import Start, anchor_file, fine_tune
from examples.demo.prompts import example
from examples.demo.training import LINEAR_LAYERS
from pact_plugin import PactConfig
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.tokens.select import Selection, select_safety_tokens

VARIANTS = [name for name, method in METHODS.items() if method.variant]
STEP = replace(PRESETS["ci"], items=8, batch_size=4)
"""Two steps of the ci preset."""


def quiet(*args):
    pass


@pytest.fixture(scope="module")
def start():
    """A tiny model that refuses `REQUESTS`, and its tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    model = tiny_aligned_model(max_position_embeddings=1024)
    tokens = select_safety_tokens(model, tokenizer, Selection(harmful=REQUESTS, benign=QUESTIONS, top_k=16))
    return Start(model, tokenizer, tokens, [])


def run(start, method, tmp_path, train="lora", sizes=STEP):
    cell = Cell("tickets", 0.25, train, method, METHODS[method].usual, 0)
    return fine_tune(cell, sizes, start, tmp_path, quiet)


def test_the_default_is_that_of_the_plugin_but_for_the_weight():
    assert PactConfig(**DEFAULT).summary() == PactConfig().summary()


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


def test_fewer_prompts_for_anchors_are_half_of_each_kind(start, tmp_path):
    few = anchor_file(replace(STEP, anchor_prompts=8), tmp_path)
    method = METHODS["anchors-only"]
    config = method.constrained(2.0, start.tokens, few)
    kinds = [one.kind for one in anchor_prompts(config.anchors.prompts)]
    assert [kinds.count("harmful"), kinds.count("benign")] == [8, 8]
    usual = method.constrained(2.0, start.tokens, anchor_file(PRESETS["short"], tmp_path))
    assert usual == PactConfig(safety_tokens=start.tokens, weight=2.0)
    assert config.model_copy(update={"anchors": usual.anchors}) == usual
    assert METHODS["confidence"].constrained(2.0, start.tokens, few).anchors is None


@pytest.mark.parametrize("method", VARIANTS)
def test_every_variant_trains(start, tmp_path, method):
    model, noted = run(start, method, tmp_path)
    assert (noted["trained_items"] < STEP.items) == METHODS[method].drops
    before = start.model.state_dict()
    changed = [not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()]
    assert any(changed) or noted["trained_items"] <= STEP.batch_size  # a single step is one of warm-up
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_each_method_has_a_table_of_its_own_in_full_fine_tuning(start, tmp_path):
    methods = ("anchors", "published", "anchors-only-first8", "anchors-only")
    for method in methods:
        run(start, method, tmp_path, "full")
    stored = [
        json.loads((tmp_path / f"full-{name}" / "_pact_store" / "header.json").read_text())
        for name in methods
    ]
    columns = [[(one["kind"], one["first"]) for one in header["columns"]] for header in stored]
    assert columns[0] == [("linear", 1), ("logprobs", 16), ("log_rest", 16)]
    assert {kind for kind, _ in columns[1]} == {"logits"}
    assert columns[2:] == [[("linear", 1)]] * 2
    assert len({header["model"] for header in stored}) == 1
