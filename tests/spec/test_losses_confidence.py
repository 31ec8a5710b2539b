"""The invariants P1 to P11 of spec/PACT.md for the confidence divergence, over array libraries and types."""

from __future__ import annotations

import numpy as np
import pact_spec.reference as spec
import pytest
from array_api_compat import array_namespace
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import (
    COMPILED,
    DIFFERENTIABLE,
    EXACT,
    KINDS,
    SETTINGS,
    SHAPE,
    UNCOMPILED,
    Problem,
    any_shape,
    arithmetic,
    on,
    problems,
    rounded,
    rounding,
    split,
    using,
)

from pact_plugin.math.confidence import confidence_divergence


def divergence(backend, problem: Problem, *, derive: bool = False) -> np.ndarray:
    """From logits, in the back end's type."""
    student, student_rest = split(backend.array(problem.student), problem.ids)
    aligned, aligned_rest = split(backend.array(problem.reference), problem.ids)
    rests = () if derive else (student_rest, aligned_rest)
    return backend.numpy(confidence_divergence(student, aligned, *rests))


@on(UNCOMPILED)
@settings(SETTINGS, max_examples=40)
@given(problem=problems(shape=any_shape))
def test_agrees_with_the_reference_for_any_shape_c2_1(kind, problem):
    agrees(kind, problem)


@on(COMPILED)
@SETTINGS
@given(problem=problems())
def test_agrees_with_the_reference_c2_1(kind, problem):
    agrees(kind, problem)


def agrees(kind, problem):
    """On the same rounded input, so that the arithmetic alone is judged."""
    with using(kind) as backend:
        names = ("student_logprobs", "student_log_rest"), ("reference_logprobs", "reference_log_rest")
        arguments = {}
        for (tokens, rest), logits in zip(names, (problem.student, problem.reference), strict=True):
            arguments[tokens], arguments[rest] = split(logits, problem.ids)
        arrays = {name: backend.array(array) for name, array in arguments.items()}
        found = confidence_divergence(**arrays)
        wanted = spec.confidence_divergence(**rounded(backend, arguments))
        np.testing.assert_allclose(backend.numpy(found), wanted, rtol=arithmetic(kind), atol=arithmetic(kind))


@on(UNCOMPILED)
@SETTINGS
@given(problem=problems(largest=2.0))
def test_derives_the_remainder_c2_2(kind, problem):
    with using(kind) as backend:
        given_rest = divergence(backend, problem)
        derived = divergence(backend, problem, derive=True)
        # r is at least 1e-2 here; 1 - sum p loses up to K roundings of the sum.
        tolerance = {"float64": 1e-10, "float32": 1e-3, "bfloat16": 0.5}[kind[1]]
        np.testing.assert_allclose(derived, given_rest, rtol=tolerance, atol=tolerance)


@on(UNCOMPILED)
@SETTINGS
@given(problem=problems(), derive=st.booleans())
def test_p1_is_not_negative(kind, problem, derive):
    with using(kind) as backend:
        assert (divergence(backend, problem, derive=derive) >= -1e-6).all()


@on(UNCOMPILED)
@SETTINGS
@given(problem=problems(), derive=st.booleans())
def test_p2_is_zero_at_the_reference(kind, problem, derive):
    same = Problem(problem.reference, problem.reference, problem.ids)
    with using(kind) as backend:
        np.testing.assert_array_equal(divergence(backend, same, derive=derive), 0)


@on(EXACT)
@SETTINGS
@given(problem=problems(), shift=st.sampled_from([-2.0, -0.5, 0.5, 2.0]))
def test_p2_is_zero_nowhere_else(kind, problem, shift):
    student = problem.reference.copy()
    student[:, problem.ids[0]] += shift
    with using(kind) as backend:
        probability = spec.softmax(problem.reference)[:, problem.ids[0]]
        seen = probability * (1 - probability) > 1e-2  # what the type can tell from zero
        assert (divergence(backend, Problem(student, problem.reference, problem.ids))[seen] > 1e-5).all()


@on(DIFFERENTIABLE)
@SETTINGS
@given(problem=problems())
def test_p2_has_no_gradient_at_the_reference(kind, problem):
    with using(kind) as backend:
        log_p, log_rest = split(backend.array(problem.reference), problem.ids)
        gradients = backend.gradients(
            lambda p, r: confidence_divergence(p, log_p, r, log_rest), [log_p, log_rest]
        )
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)


@on(EXACT)
@SETTINGS
@given(problem=problems())
def test_p3_is_at_most_the_divergence_over_the_vocabulary(kind, problem):
    with using(kind) as backend:
        tolerance = rounding(kind)
        assert (divergence(backend, problem) <= problem.kl() * (1 + tolerance) + tolerance).all()


@on(EXACT)
@SETTINGS
@given(problem=problems())
def test_p3_equals_it_when_s_is_everything_but_one_token(kind, problem):
    most = Problem(problem.student, problem.reference, list(range(problem.student.shape[-1] - 1)))
    with using(kind) as backend:
        np.testing.assert_allclose(
            divergence(backend, most), most.kl(), rtol=rounding(kind), atol=rounding(kind)
        )


@on(EXACT)
@SETTINGS
@given(problem=problems(), seed=st.integers(0, 99))
def test_p4_leaves_the_other_tokens_free(kind, problem, seed):
    # Move the others' probability about, keeping its total.
    moved = problem.student.copy()
    share = np.random.default_rng(seed).dirichlet(np.ones(len(problem.others)), size=len(moved))
    total = np.log(np.exp(moved[:, problem.others]).sum(axis=-1, keepdims=True))
    moved[:, problem.others] = total + np.log(share)
    with using(kind) as backend:
        np.testing.assert_allclose(
            divergence(backend, Problem(moved, problem.reference, problem.ids)),
            divergence(backend, problem),
            rtol=rounding(kind),
            atol=2 * rounding(kind),
        )


@on(EXACT)
@SETTINGS
@given(problem=problems(), shift=st.sampled_from([-64.0, -1.0, 2.0, 16.0]))
def test_p5_ignores_a_constant_on_the_logits(kind, problem, shift):
    with using(kind) as backend:
        shifted = Problem(problem.student + shift, problem.reference - shift, problem.ids)
        np.testing.assert_allclose(
            divergence(backend, shifted),
            divergence(backend, problem),
            rtol=rounding(kind),
            atol=rounding(kind),
        )


@on(EXACT)
@SETTINGS
@given(problem=problems(), data=st.data(), derive=st.booleans())
def test_p6_ignores_the_order_of_s(kind, problem, data, derive):
    permuted = Problem(problem.student, problem.reference, data.draw(st.permutations(problem.ids)))
    with using(kind) as backend:
        np.testing.assert_allclose(
            divergence(backend, permuted, derive=derive),
            divergence(backend, problem, derive=derive),
            rtol=arithmetic(kind),
            atol=arithmetic(kind),
        )


@on(DIFFERENTIABLE)
@SETTINGS
@given(problem=problems(largest=3.0), derive=st.booleans())
def test_p7_has_the_gradient_of_the_closed_form(kind, problem, derive):
    # r derived from bfloat16 log-probabilities may have no correct digit.
    assume(not (derive and kind[1] == "bfloat16"))
    with using(kind) as backend:
        aligned, aligned_rest = split(backend.array(problem.reference), problem.ids)

        def of_logits(logits):
            student, student_rest = split(logits, problem.ids)
            rests = () if derive else (student_rest, aligned_rest)
            return confidence_divergence(student, aligned, *rests)

        (found,) = backend.gradients(of_logits, [backend.array(problem.student)])
        tolerance = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1}[kind[1]]
        np.testing.assert_allclose(found, problem.gradient(), rtol=tolerance, atol=tolerance)


@on(DIFFERENTIABLE)
@SETTINGS
@given(problem=problems(), derive=st.booleans())
def test_p8_gives_the_reference_no_gradient(kind, problem, derive):
    with using(kind) as backend:
        student, student_rest = split(backend.array(problem.student), problem.ids)
        aligned, aligned_rest = split(backend.array(problem.reference), problem.ids)

        def of_all(student, aligned, aligned_rest):
            rests = () if derive else (student_rest, aligned_rest)
            return confidence_divergence(student, aligned, *rests)

        own, *others = backend.gradients(of_all, [student, aligned, aligned_rest])
        assert np.isfinite(own).all()
        for gradient in others:
            np.testing.assert_array_equal(gradient, 0)


TINY = np.log([[1e-30, 1e-10]])
EXTREMES = {
    # name: log p of the student, its log r, log p of the reference, its log r
    "student-at-1e-30": (TINY, -np.exp(TINY).sum(-1), np.log([[0.5, 0.25]]), np.log([0.25])),
    "reference-at-1e-30": (np.log([[0.5, 0.25]]), np.log([0.25]), TINY, -np.exp(TINY).sum(-1)),
    "student-all-on-s": (np.log([[0.75, 0.25]]), np.log([1e-30]), np.log([[0.25, 0.25]]), np.log([0.5])),
    "reference-all-on-s": (np.log([[0.25, 0.25]]), np.log([0.5]), np.log([[0.75, 0.25]]), np.log([1e-30])),
    "both-all-on-s": (np.log([[0.75, 0.25]]), np.log([1e-30]), np.log([[0.25, 0.75]]), np.log([1e-20])),
    "none-on-s": (
        np.array([[-100.0, -90.0]]),
        np.array([-0.0]),
        np.array([[-80.0, -95.0]]),
        np.array([-0.0]),
    ),
    "reference-rules-out": (np.log([[0.5, 0.25]]), np.log([0.25]), np.full((1, 2), -np.inf), np.zeros(1)),
    "both-rule-out": (np.full((1, 2), -np.inf), np.zeros(1), np.full((1, 2), -np.inf), np.zeros(1)),
    "one-token": (np.log([[1e-30]]), np.array([-1e-30]), np.log([[0.75]]), np.log([0.25])),
}


@pytest.mark.parametrize("name", EXTREMES)
@on(KINDS)
def test_p9_is_finite_and_correct_at_the_extremes(kind, name):
    with using(kind) as backend:
        keys = ("student_logprobs", "student_log_rest", "reference_logprobs", "reference_log_rest")
        arguments = dict(zip(keys, EXTREMES[name], strict=True))
        arrays = {key: backend.array(array) for key, array in arguments.items()}
        wanted = spec.confidence_divergence(**rounded(backend, arguments))
        found = backend.numpy(confidence_divergence(**arrays))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, wanted, rtol=arithmetic(kind), atol=1e-6)
        constants = {key: arrays[key] for key in keys[2:]}
        gradients = backend.gradients(
            lambda p, r: confidence_divergence(student_logprobs=p, student_log_rest=r, **constants),
            [arrays[key] for key in keys[:2]],
        )
        exact = rounded(backend, arguments)
        for key, gradient in zip(keys[:2], gradients or [], strict=False):
            reference = exact[key.replace("student", "reference")]
            np.testing.assert_allclose(gradient, np.exp(exact[key]) - np.exp(reference), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("name", EXTREMES)
@on(DIFFERENTIABLE)
def test_p9_is_finite_with_derived_remainders(kind, name):
    with using(kind) as backend:
        student, _, aligned, _ = EXTREMES[name]
        student, aligned = backend.array(student), backend.array(aligned)
        assert np.isfinite(backend.numpy(confidence_divergence(student, aligned))).all()
        (gradient,) = backend.gradients(lambda p: confidence_divergence(p, aligned), [student])
        assert np.isfinite(gradient).all()


@on(KINDS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 1)])
def test_p10_takes_an_empty_batch(kind, shape):
    with using(kind) as backend:
        empty = backend.array(np.empty(shape))
        assert confidence_divergence(empty, empty).shape == shape[:-1]
        rest = backend.array(np.empty(shape[:-1]))
        assert confidence_divergence(empty, empty, rest, rest).shape == shape[:-1]


@on(EXACT)
@SETTINGS
@given(problem=problems(), derive=st.booleans())
def test_p10_treats_every_position_by_itself(kind, problem, derive):
    with using(kind) as backend:
        together = divergence(backend, problem, derive=derive)
        for i, whole in enumerate(together):
            one = Problem(problem.student[i], problem.reference[i], problem.ids)
            alone = divergence(backend, one, derive=derive)
            assert alone.shape == ()
            np.testing.assert_allclose(alone, whole, rtol=arithmetic(kind), atol=arithmetic(kind))


@on(COMPILED)
@pytest.mark.parametrize("derive", [False, True])
def test_p11_is_the_same_under_jax_jit(kind, derive):
    import jax

    rng = np.random.default_rng(0)
    n, v, k = SHAPE
    with using(kind) as backend:
        student, student_rest = split(backend.array(rng.normal(size=(n, v))), list(range(k)))
        aligned, aligned_rest = split(backend.array(rng.normal(size=(n, v))), list(range(k)))
        arguments = (student, aligned) if derive else (student, aligned, student_rest, aligned_rest)

        def total(*arguments):
            return confidence_divergence(*arguments).sum()

        for function in (confidence_divergence, jax.grad(total)):
            np.testing.assert_allclose(
                backend.numpy(jax.jit(function)(*arguments)),
                backend.numpy(function(*arguments)),
                rtol=max(arithmetic(kind), 0.01 if kind[1] == "bfloat16" else 0),
                atol=arithmetic(kind),
            )


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_p11_is_the_same_under_torch_compile():
    import torch

    torch.manual_seed(0)
    student, aligned = torch.randn(3, 6).log_softmax(1), torch.randn(3, 6).log_softmax(1)
    compiled = torch.compile(confidence_divergence, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(student[:, :2], aligned[:, :2]), confidence_divergence(student[:, :2], aligned[:, :2])
    )


@on(KINDS)
def test_result_is_float32_or_the_wider_type_c6_1(kind):
    with using(kind) as backend:
        array = backend.array(np.log([[0.25, 0.5]]))
        xp = array_namespace(array)
        wanted = xp.float64 if kind[1] == "float64" else xp.float32
        assert confidence_divergence(array, array).dtype == wanted
