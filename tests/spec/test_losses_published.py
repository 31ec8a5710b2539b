"""The invariants P8 to P16 of spec/PACT.md for the published objective, over array libraries and types."""

from __future__ import annotations

import numpy as np
import pact_spec.reference as spec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import (
    COMPILED,
    DIFFERENTIABLE,
    EXACT,
    KINDS,
    SETTINGS,
    UNCOMPILED,
    any_shape,
    arithmetic,
    gate_settings,
    nucleus_is_clear,
    on,
    published_problems,
    rounded,
    using,
)

from pact_plugin.errors import ConfigError
from pact_plugin.math.gate import gate_end
from pact_plugin.math.published import published_divergence

GATE = {"prefix": 8, "decay": 8.0, "boost": 1.0}


def divergence(backend, problem, **options) -> np.ndarray:
    arrays = {name: backend.array(array) for name, array in problem.items()}
    return backend.numpy(published_divergence(**arrays, **options))


def close(kind, found, wanted) -> None:
    np.testing.assert_allclose(found, wanted, rtol=10 * arithmetic(kind), atol=10 * arithmetic(kind))


@on(UNCOMPILED)
@settings(SETTINGS, max_examples=40)
@given(problem=published_problems(any_shape), options=gate_settings)
def test_agrees_with_the_reference_for_any_shape_c3_4(kind, problem, options):
    agrees(kind, problem, options)


@settings(SETTINGS, max_examples=200)
@given(st.integers(0, 20), st.floats(0, 30), st.floats(0, 1))
def test_where_the_gate_ends_c3_9(prefix, decay, boost):
    assume(decay == 0 or decay > 1e-3)
    end = gate_end(prefix, decay, boost)
    bound = {"prefix": prefix, "decay": decay, "boost": boost}
    assert end in {spec.gate_end(**bound), spec.gate_end(**bound, bound=1.000001e-4)}
    assert gate_end(8, 8.0, 1.0) == spec.gate_end() == 82


@settings(SETTINGS, max_examples=60)
@given(problem=published_problems(any_shape), options=gate_settings)
def test_taking_the_gate_as_closed_changes_next_to_nothing_p20_c3_9(problem, options):
    problem = {name: np.asarray(array, np.float64) for name, array in problem.items()}
    bounds = {name: options.get(name, spec_default) for name, spec_default in GATE.items()}
    problem["position"] = problem["position"] + spec.gate_end(**bounds)
    K = problem["weights"].shape[0]
    assume(problem["weights"].max() > 0 and K > 0)
    with_gate = spec.published_divergence(**problem, **options)
    closed = spec.published_divergence(**problem | {"reference_post": problem["reference"]}, **options)
    T = options.get("temperature", 2.0)
    student = problem["student"] / T
    student = student - student.max(-1, keepdims=True)
    L = np.log(spec.published_target(**problem, **options) + 1e-300) - (
        student - np.log(np.exp(student).sum(-1, keepdims=True))
    )
    moved = np.abs(problem["reference_post"] - problem["reference"]).max(-1)
    spread = np.where(problem["weights"] > 0, L, np.nan)
    spread = np.nanmax(spread, -1) - np.nanmin(spread, -1)
    second = (1e-4 * moved) ** 2
    assert (np.abs(with_gate - closed) <= 1e-4 * T * moved * spread + second + 1e-9).all()


@on(COMPILED)
@SETTINGS
@given(problem=published_problems(), options=gate_settings)
def test_agrees_with_the_reference_c3_4(kind, problem, options):
    agrees(kind, problem, options)


def agrees(kind, problem, options):
    """On the same rounded input, so that the arithmetic alone is judged."""
    with using(kind) as backend:
        exact = rounded(backend, problem)
        assume(exact["weights"].max() > 0 and nucleus_is_clear(exact, options))
        close(kind, divergence(backend, problem, **options), spec.published_divergence(**exact, **options))


@on(EXACT)
@SETTINGS
@given(problem=published_problems(), options=gate_settings)
def test_p12_is_not_negative(kind, problem, options):
    with using(kind) as backend:
        assert (divergence(backend, problem, **options) >= -1e-4).all()


@on(EXACT)
@SETTINGS
@given(problem=published_problems(), move=st.sampled_from([0.0, 2.0]))
def test_p12_is_zero_at_the_target_alone(kind, problem, move):
    # With the gate shut the target does not depend on the student, so the student can be put on it.
    problem = problem | {"weights": np.abs(problem["weights"]) + 0.25}
    student = 2 * np.log(spec.published_target(**problem, boost=0.0))
    student[:, 0] += move
    with using(kind) as backend:
        found = divergence(backend, problem | {"student": student}, boost=0.0)
        if move == 0:
            assert (np.abs(found) < 1e-9).all()
        else:
            p = spec.softmax(student / 2)[:, 0]
            seen = p * (1 - p) > 0.05
            assert (found[seen] > 1e-5).all()


@on(EXACT)
@SETTINGS
@given(problem=published_problems(), options=gate_settings)
def test_p13_ignores_a_constant_on_the_logits(kind, problem, options):
    names = ("student", "reference", "reference_post")
    shifted = problem | {name: problem[name] + shift for name, shift in zip(names, (8, -16, 4), strict=True)}
    if kind[1] == "bfloat16":  # keep every logit on the type's grid
        problem, shifted = (
            {name: np.round(x) if name in names else x for name, x in one.items()}
            for one in (problem, shifted)
        )
    with using(kind) as backend:
        assume(nucleus_is_clear(problem, options))
        close(kind, divergence(backend, shifted, **options), divergence(backend, problem, **options))


@on(EXACT)
@SETTINGS
@given(problem=published_problems(), options=gate_settings, data=st.data())
def test_p14_ignores_the_order_of_s(kind, problem, options, data):
    order = data.draw(st.permutations(range(len(problem["weights"]))))
    permuted = {name: x if name == "position" else x[..., order] for name, x in problem.items()}
    with using(kind) as backend:
        assume(nucleus_is_clear(rounded(backend, problem), options))
        close(kind, divergence(backend, permuted, **options), divergence(backend, problem, **options))


@on(DIFFERENTIABLE)
@SETTINGS
@given(problem=published_problems(), options=gate_settings)
def test_p15_has_the_gradient_of_the_closed_form_and_p8_gives_the_references_none(kind, problem, options):
    with using(kind) as backend:
        exact = rounded(backend, problem)
        assume(exact["weights"].max() > 0 and nucleus_is_clear(exact, options))
        names = ("student", "reference", "reference_post", "weights", "position")
        found, *others = backend.gradients(
            lambda *arrays: published_divergence(*arrays, **options),
            [backend.array(problem[name]) for name in names],
        )
        tolerance = 0.02 if kind[1] == "bfloat16" else 10 * arithmetic(kind)
        wanted = spec.published_gradient(**exact, **options)
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
        for gradient in others:
            np.testing.assert_array_equal(gradient, 0)


@on(EXACT)
@SETTINGS
@given(problem=published_problems(), other=st.floats(-50, 50, width=16))
def test_p16_is_blind_to_the_mass_of_s(kind, problem, other):
    # Two students that agree within S; beside S one of them has a token that takes some or all of the mass.
    inside = problem["student"]
    whole = np.concatenate([inside, np.full((len(inside), 1), other)], axis=-1)
    log_p = whole - np.log(np.exp(whole).sum(axis=-1, keepdims=True))
    kept = log_p[:, :-1]
    with using(kind) as backend:
        one, two = problem | {"student": inside}, problem | {"student": kept}
        assume(nucleus_is_clear(rounded(backend, one), {}))
        close(kind, divergence(backend, one), divergence(backend, two))


@on(KINDS)
@pytest.mark.parametrize("scale", [1e-3, 50.0, 1e4])
def test_p9_is_finite_and_correct_at_the_extremes(kind, scale):
    rng = np.random.default_rng(5)
    names = ("student", "reference", "reference_post")
    problem = {name: scale * rng.normal(size=(3, 4)) for name in names}
    problem |= {"weights": np.array([1e-30, 2.0, -1.0, 0.0]), "position": np.array([0.0, 3.0, 500.0])}
    with using(kind) as backend:
        wanted = spec.published_divergence(**rounded(backend, problem))
        found = divergence(backend, problem)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, wanted, rtol=10 * arithmetic(kind), atol=1e-4)
        arrays = {name: backend.array(array) for name, array in problem.items()}
        for gradient in (
            backend.gradients(
                lambda student: published_divergence(**(arrays | {"student": student})), [arrays["student"]]
            )
            or []
        ):
            assert np.isfinite(gradient).all()


@on(KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"boost": 0.0}, {"decay": 0.0, "prefix": 2}, {"boost": 2.5}], ids=str
)
def test_masked_tokens_count_as_nothing_c1_4(kind, options):
    """One token is -∞ everywhere; in one case another is in z_post alone, where the gate is 0."""
    rng = np.random.default_rng(7)
    names = ("student", "reference", "reference_post")
    problem = {name: np.round(rng.normal(size=(3, 4)), 1) for name in names}
    for logits in problem.values():
        logits[:, 1] = -np.inf
    if "decay" in options:
        problem["reference_post"][2, 0] = -np.inf
    problem |= {"weights": np.array([0.5, 2.0, -1.0, 1.0]), "position": np.array([0.0, 1.0, 30.0])}
    with using(kind) as backend:
        exact = rounded(backend, problem)
        assert nucleus_is_clear(exact, options)
        close(kind, divergence(backend, problem, **options), spec.published_divergence(**exact, **options))
        arrays = {name: backend.array(array) for name, array in problem.items()}
        for gradient in (
            backend.gradients(
                lambda student: published_divergence(**(arrays | {"student": student}), **options),
                [arrays["student"]],
            )
            or []
        ):
            tolerance = 0.02 if kind[1] == "bfloat16" else 10 * arithmetic(kind)
            wanted = spec.published_gradient(**exact, **options)
            np.testing.assert_allclose(gradient, wanted, rtol=tolerance, atol=tolerance)


@on(KINDS)
def test_nan_in_gives_nan_out_c1_4(kind):
    with using(kind) as backend:
        fine, broken = (backend.array(np.array([[0.5, x, 1.0]])) for x in (0.0, np.nan))
        for place in range(3):
            logits = [broken if i == place else fine for i in range(3)]
            found = published_divergence(*logits, [1.0, 1.0, -1.0], [0], decay=0.0, prefix=0)
            assert np.isnan(backend.numpy(found)).all()


@on(KINDS)
def test_p10_takes_an_empty_batch(kind):
    with using(kind) as backend:
        empty, weights = backend.array(np.empty((0, 3))), backend.array(np.ones(3))
        position = backend.array(np.empty(0))
        assert published_divergence(empty, empty, empty, weights, position).shape == (0,)


@on(EXACT)
@SETTINGS
@given(problem=published_problems())
def test_p10_treats_every_position_by_itself(kind, problem):
    with using(kind) as backend:
        assume(nucleus_is_clear(rounded(backend, problem), {}))
        for i, whole in enumerate(divergence(backend, problem)):
            one = {name: x if name == "weights" else x[i] for name, x in problem.items()}
            close(kind, divergence(backend, one), whole)


@on(COMPILED)
@pytest.mark.parametrize("options", [{}, {"decay": 0.0, "top_p": 0.5}])
def test_p11_is_the_same_under_jax_jit(kind, options):
    import jax

    rng = np.random.default_rng(6)
    with using(kind) as backend:
        arrays = [backend.array(rng.normal(size=(3, 4))) for _ in range(3)]
        arrays += [backend.array(np.array([0.5, -1.0, 0.0, 2.0])), backend.array(np.array([0.0, 3.0, 20.0]))]

        def function(*arrays):
            return published_divergence(*arrays, **options)

        for one in (function, jax.grad(lambda *arrays: function(*arrays).sum())):
            np.testing.assert_allclose(
                backend.numpy(jax.jit(one)(*arrays)),
                backend.numpy(one(*arrays)),
                rtol=max(arithmetic(kind), 0.01 if kind[1] == "bfloat16" else 0),
                atol=arithmetic(kind),
            )


@on(KINDS)
def test_takes_weights_and_positions_as_sequences(kind):
    with using(kind) as backend:
        z = backend.array(np.array([[0.5, 1.0], [2.0, -1.0]]))
        wanted = published_divergence(
            z, z, z, backend.array(np.array([1.0, 0.5])), backend.array(np.arange(2.0))
        )
        found = published_divergence(z, z, z, (1.0, 0.5), [0, 1])
        np.testing.assert_array_equal(backend.numpy(found), backend.numpy(wanted))


@on(KINDS)
@pytest.mark.parametrize("weights", [(-1.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_unusable_weights_raise_c3_6(kind, weights):
    with using(kind) as backend:
        z = backend.array(np.zeros((1, 2)))
        with pytest.raises(ConfigError, match=r"^weights="):
            published_divergence(z, z, z, weights, [0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("gate_temperature", -1.0),
        ("prefix", -1),
        ("decay", -0.5),
        ("alpha", float("inf")),
        ("bias", float("nan")),
        ("boost", float("-inf")),
    ],
)
def test_settings_out_of_range_raise_c3_6(name, value):
    z = np.zeros((1, 2))
    with pytest.raises(ConfigError, match=rf"^{name}=.*It must be"):
        published_divergence(z, z, z, [1.0, 1.0], [0], **{name: value})
