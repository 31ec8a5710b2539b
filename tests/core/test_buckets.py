"""Anchors over the likeliest tokens of each position, beside the safety tokens (spec/PACT.md, clause C10.2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import FEW_ANCHORS, POSITIVE, TOKENIZER, a_batch, adapted, anchors_of, gradients, moved, settings
from plain import anchor_divergence, row_outputs
from tiny import tiny_model

from pact_plugin import PactConstraint
from pact_plugin.config import Anchors
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.head import language_head
from pact_plugin.model.readout import TokensOfEach
from pact_plugin.terms.step import Step

WEIGHT = 1.5


def built(model, top_k, benign_top_k):
    anchors = FEW_ANCHORS | {"per_step": 3, "tokens": 4, "top_k": top_k, "benign_top_k": benign_top_k}
    return PactConstraint(model, TOKENIZER, settings(weight=WEIGHT, easing=False, anchors=anchors))


def chosen(constraint):
    pool = anchors_of(constraint)
    return [pool.documents[i] for i in pool.schedule.chosen(1, 0, 0, 1)]


@pytest.mark.parametrize(
    ("top_k", "benign_top_k"), [*((one, one) for one in (0, 1, 7, 64)), (7, 0), (0, 7), (7, 3)]
)
@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_p26_value_and_gradient_are_those_of_a_plain_loop(build, top_k, benign_top_k):
    """The head is in training in the first, and frozen in the second."""
    model, plain, aligned = build(), build(), build()
    constraint = built(model, top_k, benign_top_k)
    moved(model), moved(plain)
    pool, held = anchors_of(constraint), Anchors(top_k=top_k, benign_top_k=benign_top_k)
    chosen = pool.schedule.chosen(1, 0, 0, 1)
    assert pool.harmful == len(pool.documents) / 2
    assert {i < pool.harmful for i in chosen} == {True, False}
    loss = constraint.ahead(a_batch(), Step(1))
    loss.backward()
    expected = WEIGHT * anchor_divergence(plain, aligned, pool, chosen, torch.tensor(POSITIVE), held)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert loss.item() > 1e-3
    theirs = gradients(plain)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4)


def test_p27_with_every_token_it_is_the_divergence_over_the_vocabulary():
    model = tiny_model()
    everything = model.config.vocab_size - len(POSITIVE) - 1
    constraint, aligned = built(model, everything, everything), tiny_model()
    moved(model)
    found = constraint.ahead(a_batch(), Step(1)).item() / WEIGHT
    parts = []
    for document in chosen(constraint):
        where = torch.from_numpy(document.columns) - 1
        batch = {"input_ids": torch.from_numpy(document.tokens)[None]}
        with torch.no_grad():
            ours, theirs = (row_outputs(one, batch, 0)[0][where].log_softmax(-1) for one in (model, aligned))
        parts.append((theirs.exp() * (theirs - ours)).sum(1).mean())
    assert found == pytest.approx(torch.stack(parts).mean().item(), rel=1e-4)


@given(seed=st.integers(0, 10_000), few=st.integers(0, 20), more=st.integers(0, 20))
def test_p27_more_buckets_see_no_less(seed, few, more):
    generator = torch.Generator().manual_seed(seed)
    model, aligned = torch.randn(2, 3, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    order = aligned.argsort(dim=1, descending=True)

    def divergence(count):
        ids = order[:, :count]
        rest = [one.scatter(1, ids, -torch.inf).logsumexp(1) for one in (model, aligned)]
        return confidence_divergence(model.gather(1, ids), aligned.gather(1, ids), *rest)

    low, high = sorted((1 + few, 1 + more))
    assert torch.all(divergence(low) <= divergence(high) + 1e-12)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk_size", [3, 256])
def test_a_head_read_at_tokens_of_each_position(frozen, chunk_size):
    model = tiny_model().requires_grad_(not frozen)
    head = language_head(model)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, model.config.hidden_size, generator=generator).requires_grad_()
    ids = torch.stack([torch.randperm(model.config.vocab_size, generator=generator)[:5] for _ in range(8)])
    labels = torch.arange(8)
    read = head.readout(hidden, TokensOfEach.of(ids), labels, chunk_size=chunk_size)
    weights = torch.randn(8, 5, generator=generator)
    (ours,) = torch.autograd.grad(
        (read.logprobs * weights).sum() + read.log_rest.sum() - read.label.sum(), hidden
    )
    logprobs = head.logits(hidden).log_softmax(-1)
    rest = logprobs.scatter(1, ids, -torch.inf).logsumexp(1)
    label = logprobs[torch.arange(8), labels]
    torch.testing.assert_close(read.logprobs, logprobs.gather(1, ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read.log_rest, rest, atol=1e-5, rtol=1e-5)
    loss = (logprobs.gather(1, ids) * weights).sum() + rest.sum() - label.sum()
    (theirs,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
