"""The remainder, the easing and the checks of arguments of the mathematics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st
from strategies import DIFFERENTIABLE, KINDS, SETTINGS, arithmetic, on, using

from pact_plugin.errors import ShapeError
from pact_plugin.math.confidence import confidence_divergence, log_rest
from pact_plugin.math.easing import eased_share
from pact_plugin.math.published import published_divergence


@on(KINDS)
@pytest.mark.parametrize("r", [0.5, 1e-3, 1e-5])
def test_remainder_beside_one_dominating_token_c2_2(kind, r):
    with using(kind) as backend:
        logprobs = backend.array(np.array([math.log1p(-r), math.log(r * 1e-3)]))
        exact = backend.numpy(logprobs)
        if exact[0] == 0:
            pytest.fail("the type rounds this probability to one")
        wanted = math.log(-math.expm1(exact[0]) - math.exp(exact[1]))
        assert backend.numpy(log_rest(logprobs)) == pytest.approx(wanted, rel=arithmetic(kind))


@on(KINDS)
def test_remainder_of_next_to_nothing_c2_2(kind):
    with using(kind) as backend:
        logprobs = backend.array(np.array([math.log(1e-30), math.log(2e-30)]))
        tolerance = 0.5 if kind[1] == "bfloat16" else 1e-4  # bfloat16 rounds the logarithm itself
        assert backend.numpy(log_rest(logprobs)) == pytest.approx(-3e-30, rel=tolerance, abs=0)


@on(KINDS)
def test_unresolved_remainder_is_the_epsilon_c2_2(kind):
    with using(kind) as backend:
        everything = backend.array(np.log(np.array([0.5, 0.5, 0.25])))
        epsilon = np.finfo(np.float64 if kind[1] == "float64" else np.float32).eps
        assert backend.numpy(log_rest(everything)) == pytest.approx(math.log(epsilon), rel=1e-5)


@on(DIFFERENTIABLE)
def test_unresolved_remainder_still_pulls_on_the_others_c2_2(kind):
    # The student leaves nothing to other tokens and the reference half: their gradient must not vanish.
    with using(kind) as backend:
        logprobs = backend.array(np.log(np.array([0.5, 0.5])))
        (gradient,) = backend.gradients(log_rest, [logprobs])
        assert np.isfinite(gradient).all()
        assert (gradient < -1e5).all()


@on(KINDS)
@SETTINGS
@given(rows=st.lists(st.tuples(st.floats(-6, 6, width=16), st.booleans()), min_size=3, max_size=3))
def test_a_response_is_eased_where_the_prompt_is_harmful_and_it_does_not_refuse_c2_6(kind, rows):
    with using(kind) as backend:
        log_odds = backend.array(np.array([odds for odds, _ in rows]))
        refuses = array_namespace(log_odds).asarray(np.array([refused for _, refused in rows]))
        shares = eased_share(log_odds, refuses)
        assert backend.numpy(shares).tolist() == [
            1.0 if odds > 0 and not refused else 0.0 for odds, refused in rows
        ]
        wide = np.float64 if kind[1] == "float64" else np.float32
        assert str(shares.dtype).endswith(wide.__name__)


def test_easing_carries_no_gradient_c2_6():
    log_odds = torch.tensor([0.75]).requires_grad_()
    share = eased_share(log_odds, torch.tensor([False]))
    assert share.item() == 1.0
    assert not share.requires_grad


def test_nothing_is_eased_at_even_odds_c2_6():
    odds = np.array([0.0, -0.0, -np.inf, np.inf, 1e-300])
    assert eased_share(odds, np.zeros(5, dtype=bool)).tolist() == [0, 0, 0, 1, 1]


A = np.log(np.full((2, 3), 0.25))
REST = np.log(np.full(2, 0.25))


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("student_logprobs", (A[:, :0], A[:, :0])),
        ("student_logprobs", (A[0, 0], A[0, 0])),
        ("reference_logprobs", (A, A[:1])),
        ("reference_logprobs", (A, A[:, :2])),
        ("student_log_rest", (A, A, REST[:1], REST)),
        ("reference_log_rest", (A, A, REST, A)),
        ("reference_logprobs", (A, np.zeros((2, 3), dtype=np.int64))),
        ("student_logprobs", (A.tolist(), A)),
        ("reference_logprobs", (A, torch.tensor(A))),
    ],
)
def test_misshapen_confidence_arguments_raise_c1_5(argument, arguments):
    with pytest.raises(ShapeError) as caught:
        confidence_divergence(*arguments)
    assert argument in caught.value.key
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("student", (A[:, :0], A[:, :0], A[:, :0], [], [0, 1])),
        ("reference", (A, A[:1], A, [1.0] * 3, [0, 1])),
        ("reference_post", (A, A, A[0], [1.0] * 3, [0, 1])),
        ("weights", (A, A, A, [1.0] * 2, [0, 1])),
        ("position", (A, A, A, [1.0] * 3, [0])),
        ("student", (torch.tensor(A), A, A, [1.0] * 3, [0, 1])),
    ],
)
def test_misshapen_published_arguments_raise_c1_5(argument, arguments):
    with pytest.raises(ShapeError) as caught:
        published_divergence(*arguments)
    assert argument in caught.value.key


@pytest.mark.parametrize("refuses", [np.array([True]), np.array(True), np.ones((2, 3), dtype=bool)])
def test_misshapen_easing_arguments_raise_c1_5(refuses):
    with pytest.raises(ShapeError, match="refuses"):
        eased_share(REST, refuses)
    with pytest.raises(ShapeError, match="log_odds"):
        eased_share(np.ones(2, dtype=np.int64), np.array([True, False]))


def test_shapes_are_checked_under_jit_c1_5():
    import jax
    import jax.numpy as jnp

    with pytest.raises(ShapeError, match="reference_logprobs"):
        jax.jit(confidence_divergence)(jnp.asarray(A), jnp.asarray(A[:, :2]))


def test_nan_is_let_through_c1_4():
    spoilt = A.copy()
    spoilt[0, 1] = np.nan
    assert np.isnan(confidence_divergence(A, spoilt)).tolist() == [True, False]
    assert np.isnan(confidence_divergence(spoilt, A)).tolist() == [True, False]
    assert np.isnan(published_divergence(spoilt, A, A, [1.0] * 3, [0, 1])).tolist() == [True, False]
