"""What a table gives back, and how precisely (spec/PACT.md, clause C7.6)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import CPU, HELD, IDS, document, stored, table

from pact_plugin import confidence_divergence, published_divergence
from pact_plugin.math.easing import eased_share
from pact_plugin.math.gate import gate_end
from pact_plugin.model.linear import LinearFunction
from pact_plugin.reference.columns import Columns

ODDS = Columns("linear", (), linear=LinearFunction(torch.tensor([1.0, -2.0]), 0.5))
END = gate_end(8, 8.0, 1.0)


def buckets(logits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p of all tokens but the last, and log r, in float64."""
    logprobs = torch.from_numpy(logits).log_softmax(-1)
    return logprobs[:, :-1], logprobs[:, -1:]


LOGITS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 1.0, 5.0, 30.0]),  # scale of the logits
    st.sampled_from([-60.0, -8.0, 0.0, 8.0, 60.0]),  # of the rest: from r → 1 to r → 0
    st.integers(1, 20),
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(LOGITS)
def test_the_error_of_stored_columns_is_bounded_p22_c7_6(tmp_path_factory, drawn):
    """C7.6: no stored probability is off by more than 2e-4; D and its gradient accordingly, and e not at all."""
    seed, scale, rest, count = drawn
    random = np.random.default_rng(seed)
    reference, student = (random.normal(0, scale, (16, count + 1)) for _ in range(2))
    reference[:, -1] += -rest
    student[8:] = reference[8:] + random.normal(0, 1e-3, (8, count + 1))  # hardly trained
    logprobs, log_rest = buckets(reference)
    odds = torch.from_numpy(random.normal(0, scale, (16, 1)))
    ids = tuple(range(count))
    columns = [ODDS, *(Columns(kind, ids) for kind in ("logprobs", "log_rest"))]
    exact = dict(zip(columns, (odds.float(), logprobs.float(), log_rest.float()), strict=True))
    found_odds, found, found_rest = stored(
        tmp_path_factory.mktemp("t"), exact, document(16)
    ).values()  # in the order asked
    every, found_every = torch.cat([logprobs, log_rest], 1), torch.cat([found, found_rest], 1)
    error = (found_every.double().exp() - every.exp()).abs()
    assert error.max() <= 2e-4
    assert ((found_every - every).abs() <= 2**-11 * every.abs() + 2**-24).all()
    assert ((found_odds - odds).abs() <= 2**-11 * odds.abs() + 2**-24).all()
    refuses = torch.zeros(16, dtype=torch.bool)
    eased, wanted_eased = (eased_share(one[:, 0].double(), refuses) for one in (found_odds, odds))
    assert torch.equal(eased, wanted_eased)

    logits = torch.from_numpy(student).requires_grad_()
    own = logits.log_softmax(-1)

    def divergence_and_gradient(aligned, rest_of):
        rests = own[:, -1], rest_of.double()[:, 0]
        divergence = confidence_divergence(own[:, :-1], aligned.double(), *rests)
        (gradient,) = torch.autograd.grad(divergence.sum(), logits, retain_graph=True)
        return divergence.detach(), gradient

    wanted, wanted_gradient = divergence_and_gradient(logprobs, log_rest)
    divergence, gradient = divergence_and_gradient(found, found_rest)
    # To first order D moves by Σ δ log(p_ref / p), plus a term of second order in the relative error 2^-11 |log p_ref|.
    relative = every.abs() * 2**-11 + 2**-24
    bound = (error * (every - own.detach()).abs() + every.exp() * relative**2).sum(1)
    assert ((divergence - wanted).abs() <= 2 * bound + 1e-6).all()
    assert (divergence >= 0).all()
    assert (gradient - wanted_gradient).abs().max() <= 2e-4 * (count + 1) + 1e-7


@pytest.mark.parametrize("log_r", [-30.0, -1e-3, -1e-7, -1e-30])
def test_precise_where_the_remainder_vanishes_or_is_everything(tmp_path, log_r):
    log_s = math.log(-math.expm1(log_r)) if log_r < -1e-20 else -69.0
    columns = Columns("logprobs", (3,)), Columns("log_rest", (3,))
    exact = dict(zip(columns, (torch.tensor([[log_s]]), torch.tensor([[log_r]])), strict=True))
    found = stored(tmp_path, exact, document(1))
    assert float(found[columns[1]]) == pytest.approx(log_r, rel=2**-10, abs=1e-7)
    assert float(found[columns[0]]) == pytest.approx(log_s, rel=2**-10, abs=1e-7)


@pytest.mark.parametrize("kind", ["logprobs", "logits"])
def test_a_masked_token_stays_impossible(tmp_path, kind):
    column = Columns(kind, (3, 4))
    found = stored(tmp_path, {column: torch.tensor([[-torch.inf, -0.5]])}, document(1))
    assert found[column].tolist() == [[-torch.inf, -0.5]]


@pytest.mark.parametrize("odds", [7e4, -7e4, 3.0])
def test_log_odds_keep_their_sign_where_float16_ends(tmp_path, odds):
    (found,) = stored(tmp_path, {ODDS: torch.tensor([[odds]])}, document(1))[ODDS].tolist()
    assert found == pytest.approx([max(-65504, min(65504, odds))])


def test_columns_at_other_first_tokens_lie_at_their_own_positions(tmp_path):
    """One document of two responses, of 5 and of 2 tokens."""
    index = [0, 1, 2, 3, 4, 0, 1]
    columns = [replace(ODDS, first=2), Columns("logprobs", IDS, 4), Columns("log_rest", IDS)]
    counts = [4, 6, 7]
    content = {
        one: torch.arange(count * one.width).reshape(count, one.width) / -64
        for one, count in zip(columns, counts, strict=True)
    }
    found = stored(tmp_path, content, document(7, index=index))
    assert list(found) == columns
    assert all(torch.equal(found[one], content[one]) for one in columns)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(LOGITS, st.sampled_from([0.0, 300.0]))
def test_the_error_of_stored_logits_is_bounded_p22_c7_6(tmp_path_factory, drawn, offset):
    """C7.6 for the published objective, also where all logits are far from 0, which moves them (`Columns.kind`)."""
    seed, scale, _, count = drawn
    random = np.random.default_rng(seed)
    positions, opened = 100, END
    student, aligned, post = (
        torch.from_numpy(random.normal(offset, scale, (positions, count))) for _ in range(3)
    )
    columns = Columns("logits", IDS[:1] * count), Columns("logits", IDS[:1] * count, opened, behind=(1,))
    moved_there, moved_post = (one - one.amax(1, keepdim=True) for one in (aligned, post))
    exact = dict(zip(columns, (moved_there.float(), moved_post[:opened].float()), strict=True))
    found = stored(tmp_path_factory.mktemp("t"), exact, document(positions))
    values = found[columns[0]].double()
    found_post = torch.cat([found[columns[1]].double(), values[opened:]])
    weights, index = torch.from_numpy(random.uniform(0.1, 1, count)), torch.arange(positions)
    wanted = published_divergence(student, aligned, post, weights, index)
    got = published_divergence(student, values, found_post, weights, index)
    spread = (aligned - aligned.amax(1, keepdim=True)).abs().amax(1) + (post - aligned).abs().amax(1)
    # A rounded logit can move the n of the gate by one token, and so c by alpha / 4K.
    flips = 2.0 / (4 * count) * (post - aligned).abs().amax(1)
    assert ((got - wanted).abs() <= 4 * (2**-10 * (1 + wanted) * (1 + spread) + flips) + 1e-4).all()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_documents_come_back_in_any_order_and_number(tmp_path_factory, lengths, data):
    filled = table(tmp_path_factory.mktemp("t"))
    filled.create()
    contents = {}
    for rank in (0, 1):  # two files
        with filled.writer(rank) as writer:
            for number in range(rank, len(lengths), 2):
                positions = lengths[number]
                values = torch.full((positions, 4), -float(number)) - torch.arange(positions)[:, None] / 64
                contents[number] = {HELD[0]: values, HELD[1]: values[:, :1]}
                writer.put(filled.encoded([(document(positions, number), contents[number])]))
    filled.refresh()
    order = data.draw(st.lists(st.sampled_from(range(len(lengths))), max_size=8))
    found = filled.fetch([document(lengths[number], number) for number in order], CPU)
    for one, width in zip(HELD, (4, 1), strict=True):
        expected = [torch.zeros(0, width), *(contents[number][one] for number in order)]
        assert torch.equal(found[one], torch.cat(expected))
    assert filled.documents == len(lengths)
    there, absent, more = document(lengths[0], 0), document(1, 99), document(2, 98)
    assert filled.fetch([absent, there], CPU) is None
    assert filled.fetch([there, absent], CPU) is None
    assert filled.lacks([absent, there, more]) == [absent, more]
