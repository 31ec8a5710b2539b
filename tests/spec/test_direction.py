"""Choosing the safety tokens: clause C8 and the invariants P17 to P19 of spec/PACT.md."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pact_spec.reference as spec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXACT, KINDS, SETTINGS, on, using

from pact_plugin.errors import ConfigError, ShapeError
from pact_plugin.math.direction import safety_direction

V = 7


def sides(rng: np.random.Generator, prompts: tuple[int, ...] = (3, 1, 3), others: tuple[int, ...] = (3, 1)):
    return [rng.normal(size=(rows, V)) * 3 for rows in prompts], [
        rng.normal(size=(rows, V)) * 3 for rows in others
    ]


def choose(backend, aligned, contrast, top_k):
    ids, weights = safety_direction(map(backend.array, aligned), map(backend.array, contrast), top_k=top_k)
    return backend.numpy(ids), backend.numpy(weights)


@on(KINDS)
@SETTINGS
@given(seed=st.integers(0, 10**6), top_k=st.sampled_from([2, 5]))
def test_agrees_with_the_reference_c8_2(kind, seed, top_k):
    aligned, contrast = sides(np.random.default_rng(seed))
    with using(kind) as backend:
        found = choose(backend, aligned, contrast, top_k)
        wanted = spec.safety_direction(
            *([backend.numpy(backend.array(one)) for one in side] for side in (aligned, contrast)),
            top_k=top_k,
        )
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)


@on(EXACT)
@SETTINGS
@given(seed=st.integers(0, 10**6), top_k=st.sampled_from([2, 5]))
def test_p17_gives_ascending_ids_and_a_centred_unit_vector(kind, seed, top_k):
    with using(kind) as backend:
        ids, weights = choose(backend, *sides(np.random.default_rng(seed)), top_k)
        assert ids.shape == weights.shape == (top_k,)
        assert (np.diff(ids) > 0).all()
        assert 0 <= ids.min() <= ids.max() < V
        assert weights.sum() == pytest.approx(0, abs=1e-5)
        assert np.linalg.norm(weights) == pytest.approx(1, abs=1e-5)


@on(EXACT)
@SETTINGS
@given(seed=st.integers(0, 10**6))
def test_p18_ignores_the_order_of_prompts_and_positions(kind, seed):
    aligned, contrast = sides(np.random.default_rng(seed))
    turned = [[one[::-1] for one in side[::-1]] for side in (aligned, contrast)]
    with using(kind) as backend:
        for found, wanted in zip(
            choose(backend, *turned, 4), choose(backend, aligned, contrast, 4), strict=True
        ):
            np.testing.assert_allclose(found, wanted, atol=1e-4)


@on(EXACT)
@SETTINGS
@given(seed=st.integers(0, 10**6), constant=st.sampled_from([-32.0, 4.0]))
def test_p19_ignores_a_constant_on_the_logits(kind, seed, constant):
    aligned, contrast = ([np.round(one) for one in side] for side in sides(np.random.default_rng(seed)))
    shifted = [one + constant for one in aligned]
    with using(kind) as backend:
        ids, weights = choose(backend, aligned, contrast, V)
        moved_ids, moved = choose(backend, shifted, contrast, V)
        np.testing.assert_array_equal(moved_ids, ids)
        np.testing.assert_allclose(moved, weights, atol=1e-4)


@SETTINGS
@given(logits=hnp.arrays(np.float64, (4, V), elements=st.floats(-5, 5, width=16)))
def test_paired_sides_give_the_mean_of_the_differences_c8_3(logits):
    aligned, contrast = [logits[:2], logits[2:3]], [logits[1:3] + np.eye(2, V), logits[3:] - np.eye(1, V)]
    p = [spec.softmax(a) - spec.softmax(b) for a, b in zip(aligned, contrast, strict=True)]
    difference = (p[0].mean(axis=0) + p[1][0]) / 2
    centred = difference - difference.mean()
    _, weights = safety_direction(aligned, contrast, top_k=V)
    np.testing.assert_allclose(weights, centred / np.linalg.norm(centred), atol=1e-6)


def test_keeps_what_the_aligned_side_says_most_c8_2():
    aligned = [np.log(np.array([[0.05, 0.5, 0.05, 0.3, 0.1]]))]
    contrast = [np.log(np.array([[0.2, 0.2, 0.2, 0.3, 0.1]]))]
    ids, weights = safety_direction(aligned, contrast, top_k=2)
    assert ids.tolist() == [1, 3]
    np.testing.assert_allclose(weights, [2**-0.5, -(2**-0.5)])


def test_carries_no_gradient():
    aligned = torch.randn(3, V, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, weights = safety_direction([aligned], [torch.zeros(1, V)], top_k=3)
    assert not weights.requires_grad


def test_holds_one_prompt_at_a_time():
    alive = []

    def generate(side):
        for logits in side:
            alive.append(logits)
            yield logits
            alive.pop()

    rng = np.random.default_rng(0)
    aligned, contrast = sides(rng)
    ids, _ = safety_direction(generate(aligned), generate(contrast), top_k=3)
    assert alive == []
    assert ids.tolist() == safety_direction(aligned, contrast, top_k=3)[0].tolist()


@pytest.mark.parametrize("top_k", [-1, 0, 1, V + 1])
def test_top_k_out_of_range_raises_c8_4(top_k):
    aligned, contrast = sides(np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"^top_k="):
        safety_direction(aligned, contrast, top_k=top_k)


def test_sides_that_do_not_differ_raise_c8_4():
    aligned, _ = sides(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="contrast_logits: the two sides do not differ"):
        safety_direction(aligned, aligned, top_k=3)


def test_nan_raises_c1_4():
    aligned, contrast = sides(np.random.default_rng(0))
    contrast[0][0, 0] = np.nan
    with pytest.raises(ConfigError, match="NaN"):
        safety_direction(aligned, contrast, top_k=V)


@pytest.mark.parametrize(
    ("argument", "aligned", "contrast"),
    [
        ("aligned_logits", [], [np.zeros((1, V))]),
        ("contrast_logits", [np.zeros((1, V))], iter([])),
        ("aligned_logits", [np.zeros((0, V))], [np.zeros((1, V))]),
        ("aligned_logits", [np.zeros(V)], [np.zeros((1, V))]),
        ("aligned_logits", [np.zeros((1, V)), np.zeros((1, V - 1))], [np.zeros((1, V))]),
        ("contrast_logits", [np.zeros((1, V))], [np.zeros((1, V + 1))]),
        ("contrast_logits", [np.zeros((1, V))], [[[0.0] * V]]),
    ],
)
def test_misshapen_arguments_raise_c1_5(argument, aligned, contrast):
    with pytest.raises(ShapeError, match=argument):
        safety_direction(aligned, contrast, top_k=2)
