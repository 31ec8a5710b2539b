"""The remainder, the easing and the checks of arguments of the mathematics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given
from pact_spec.reference import softmax
from strategies import DIFFERENTIABLE, KINDS, SETTINGS, arithmetic, on, problems, using

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
@given(problem=problems())
def test_eased_share_is_the_reference_mass_where_the_label_is_elsewhere_c2_6(kind, problem):
    with using(kind) as backend:
        mass = softmax(problem.reference)[:, problem.ids].sum(-1)
        inside = np.arange(len(mass)) % 2 == 0
        log_mass = backend.array(np.log(mass))
        found = backend.numpy(eased_share(log_mass, array_namespace(log_mass).asarray(inside)))
        tolerance = 0.02 if kind[1] == "bfloat16" else arithmetic(kind)
        np.testing.assert_allclose(found, np.where(inside, 0, mass), atol=tolerance)
        assert ((found >= 0) & (found <= 1)).all()


def test_eased_share_carries_no_gradient_c2_6():
    log_mass = torch.tensor([0.75]).log().requires_grad_()
    share = eased_share(log_mass, torch.tensor([False]))
    assert share.item() == pytest.approx(0.75)
    assert not share.requires_grad


def test_eased_share_never_exceeds_one_c2_6():
    """Nor where rounding has let the mass."""
    assert eased_share(np.log(np.array([1.25])), np.array([False])) == 1.0


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


@pytest.mark.parametrize("label_in_safety", [np.array([True]), np.array(True), np.ones((2, 3), dtype=bool)])
def test_misshapen_easing_arguments_raise_c1_5(label_in_safety):
    with pytest.raises(ShapeError, match="label_in_safety"):
        eased_share(REST, label_in_safety)


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
