"""What must not pass in silence in a bespoke loop: errors and warnings."""

from __future__ import annotations

import warnings

import pytest
import torch
from loop import FEW_ANCHORS, TERMS, TOKENIZER, TOKENS, a_batch, loss_of, settings, without_response
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from pact_plugin import PactConstraint, SafetyTokens
from pact_plugin.errors import (
    HiddenStatesNotSeenError,
    ModelStructureError,
    NonFiniteError,
    NoResponseError,
    PactError,
    ReferenceModelError,
    ShapeError,
    TokenizerMismatchError,
)
from pact_plugin.terms.step import Step


def test_a_model_that_a_constrained_run_has_trained_is_not_the_aligned_one(tmp_path):
    """Unless it is named as such."""
    tiny_model().save_pretrained(tmp_path)
    constraint = PactConstraint(AutoModelForCausalLM.from_pretrained(tmp_path), TOKENIZER, settings())
    TOKENIZER.save_pretrained(tmp_path)
    constraint.record.write(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(
        ReferenceModelError, match=f"model={str(tmp_path)!r}: .*has trained it.*as `reference`, or"
    ):
        PactConstraint(again, TOKENIZER, settings())
    PactConstraint(again, TOKENIZER, settings(reference=str(tmp_path)))


def test_a_forward_pass_outside_watch():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    model(**batch)
    with pytest.raises(HiddenStatesNotSeenError, match="watch"):
        constraint.loss(batch)
    with constraint.watch():
        model(**batch)
    constraint.loss(batch)
    with pytest.raises(HiddenStatesNotSeenError, match="once for each call"):
        constraint.loss(batch)
    with constraint.watch(), torch.no_grad():
        model(**batch)
    with pytest.raises(HiddenStatesNotSeenError, match="no gradient"):
        constraint.loss(batch)
    assert not model.model._forward_hooks


def test_a_batch_without_labels():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with constraint.watch():
        model(**batch)
    with pytest.raises(ShapeError, match="the batch has no labels"):
        constraint.loss({name: value for name, value in batch.items() if name != "labels"})


def test_labels_all_ignored():
    model, batch = tiny_model(), without_response(a_batch())
    constraint = PactConstraint(model, TOKENIZER, settings())
    with pytest.raises(NoResponseError, match="all -100"):
        loss_of(constraint, model, batch)
    loss_of(constraint, model, batch, Step(9))
    assert constraint.metrics() == {}, "a few rows may have theirs truncated away"
    loss_of(constraint, model, batch, Step(10))
    with pytest.raises(NoResponseError, match="no response position since the last log"):
        constraint.metrics()


def test_a_batch_without_a_response_stops_no_run_that_has_seen_one(caplog):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    loss_of(constraint, model, batch, Step(1))
    assert constraint.metrics()
    for number in (2, 3):
        loss_of(constraint, model, without_response(batch), Step(number))
        assert constraint.metrics() == {}
    assert caplog.text.count("have shown no response position") == 1
    loss_of(constraint, model, batch, Step(4))
    assert constraint.metrics()


def test_nothing_masked_warns_and_names_the_settings():
    model, batch = tiny_model(), a_batch()
    batch["labels"] = batch["input_ids"].clone()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with pytest.warns(UserWarning, match=r"completion_only_loss.*train_on_inputs"):
        loss_of(constraint, model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(constraint, model, batch)


@pytest.mark.parametrize("terms", TERMS)
def test_nan_in_the_reference_and_in_the_model(terms):
    changes = TERMS[terms]
    batch = a_batch()
    aligned, model = tiny_model(), tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings(**changes), reference_model=aligned)
    with torch.no_grad():
        aligned.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        loss_of(constraint, model, batch)
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings(**changes))
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        loss_of(constraint, model, batch)


def test_what_does_not_fit_together(tmp_path):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with constraint.watch():
        model(**batch)
    with pytest.raises(ShapeError, match="labels"):
        constraint.loss({"labels": batch["labels"][:, :-1]})
    with pytest.raises(PactError, match="only 41 logits"):
        PactConstraint(
            tiny_model(vocab_size=41, pad_token_id=0, bos_token_id=1, eos_token_id=2), TOKENIZER, settings()
        )
    other = SafetyTokens(TOKENS.ids, TOKENS.weights, TOKENS.tokens, TOKENS.vocab_size, "0" * 64)
    with pytest.raises(TokenizerMismatchError):
        PactConstraint(model, TOKENIZER, settings(safety_tokens=other))
    with pytest.raises(ReferenceModelError, match=r"reference=.*no-such-folder"):
        PactConstraint(model, TOKENIZER, settings(reference=str(tmp_path / "no-such-folder")))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_was_replaced_or_resized_is_refused(tmp_path, tied):
    """The constraint would read the one that it was built with, and the reference has no more tokens than that."""
    batch, config = a_batch(), settings(store=tmp_path, anchors=FEW_ANCHORS)
    for use in (
        lambda constraint, model: constraint.fill([batch], progress=False),
        lambda constraint, model: constraint.ahead(batch),
        lambda constraint, model: loss_of(constraint, model, batch),
    ):
        model = tiny_model(tie_word_embeddings=tied)
        constraint = PactConstraint(model, TOKENIZER, config)
        model.resize_token_embeddings(len(TOKENIZER) + 2)
        with pytest.raises(ModelStructureError, match=r"head was replaced or resized.*Resize.*before"):
            use(constraint, model)
