"""Which model the constraint reads as its reference, and how much of a batch that reads."""

from __future__ import annotations

import pytest
import torch
from loop import TOKENIZER, a_batch, adapted, calls_of_sources, constrained, loss_of, moved, settings
from tiny import tiny_model

from pact_plugin import PactConstraint
from pact_plugin.model.head import LanguageHead


def shapes_read(monkeypatch, batch, **changes) -> list[tuple[int, ...]]:
    """The shapes of what the reference reads in one step."""
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings(**changes))
    with monkeypatch.context() as patch:
        calls = calls_of_sources(patch)
        loss_of(constraint, moved(model), batch)
        return [tuple(call["input_ids"].shape) for call in calls]


def test_a_pass_reads_no_more_than_is_asked(monkeypatch):
    batch = a_batch(rows=3, width=40)
    batch["labels"][-1, 6:] = -100  # the prompt has 4 tokens, this response 2
    for first in (1, 5, "all"):
        assert shapes_read(monkeypatch, batch, easing={"first": first}) == [(3, 4)]  # the prompts alone
    held = {"easing": False, "hold_data": {"first": 100}}
    assert shapes_read(monkeypatch, batch, **held) == [(3, 40 - 1)]
    both = {"easing": {"first": 8}, "hold_data": {"first": 6}}
    assert shapes_read(monkeypatch, batch, **both) == [(3, 4 + 6 - 1)]
    assert shapes_read(monkeypatch, batch, hold_data=True) == [(3, 40)]


def test_the_prompt_free_pass_ends_where_the_gate_does(monkeypatch):
    batch = a_batch(rows=2, width=40)  # three responses
    header = len(TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False))
    for published, length in (({"prefix": 3, "decay": 0}, 3), ({"prefix": 2, "decay": 0.5}, 7)):
        asked = {"easing": False, "advanced": {"published": published}}
        assert shapes_read(monkeypatch, batch, **asked) == [(2, 40), (3, header + length - 1)]
    closed = {"easing": False, "advanced": {"published": {"boost": 0}}}
    assert shapes_read(monkeypatch, batch, **closed) == [(2, 40)]


@pytest.mark.parametrize(
    "changes",
    [
        {"easing": {"first": 3}},
        {"hold_data": {"first": 3}},
        {"easing": False, "advanced": {"published": {"first": 3}}},
    ],
    ids=["easing", "hold_data", "published"],
)
def test_without_padding_all_passes_are_one(monkeypatch, changes):
    """As with flash attention, which keeps documents apart in one row; so does the mask that is built without it."""
    batch = a_batch()
    _, padded = constrained(tiny_model(), settings(**changes), batch)
    monkeypatch.setattr(LanguageHead, "keeps_documents_apart", True)
    assert [shape[0] for shape in shapes_read(monkeypatch, batch, **changes)] == [1]
    _, flat = constrained(tiny_model(), settings(**changes), batch)
    assert flat.item() == pytest.approx(padded.item(), rel=1e-5)


def test_a_batch_that_is_more_than_its_token_ids_is_read_whole(monkeypatch):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings(easing={"first": 2}))
    calls = calls_of_sources(monkeypatch)
    with constraint.watch():
        hidden = model.model(batch["input_ids"], token_type_ids=torch.ones(3, 12)).last_hidden_state
        assert hidden.requires_grad
    constraint.loss(batch)
    (read,) = calls
    assert "token_type_ids" in read


def test_lora_costs_no_second_model_and_weight_0_only_measures():
    model = adapted().train()
    constraint, loss = constrained(model, settings(weight=0, hold_data=True), a_batch())
    assert constraint.record.receipt.reference == "adapter_off"
    assert constraint.reference.choice.source == "adapter_off"
    assert loss.item() == 0.0
    assert not loss.requires_grad
    assert constraint.metrics()["pact/divergence"] > 0


def test_a_reference_from_a_folder(tmp_path):
    aligned, batch = tiny_model(seed=4), a_batch()
    aligned.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    named, from_folder = constrained(tiny_model(), settings(hold_data=True, reference=tmp_path), batch)
    _, given = constrained(tiny_model(), settings(hold_data=True), batch, reference_model=aligned)
    assert from_folder.item() == pytest.approx(given.item(), rel=1e-6)
    assert named.record.receipt.reference == "model"
