"""What tells harmful prompts from benign ones (spec/PACT.md, clause C11)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from pact_plugin.errors import ConfigError
from pact_plugin.model.linear import LinearFunction
from pact_plugin.reference import probe as probe_module
from pact_plugin.reference.probe import Probe


def states(
    apart: float, *, count: int = 200, width: int = 8, harmful: float = 0.5, seed: int = 0
) -> tuple[Tensor, list[bool]]:
    """Normal states of two kinds whose means lie `apart` standard deviations from each other."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) < harmful * count
    hidden = torch.randn(count, width, generator=generator)
    hidden[:, 2] += apart * (kinds.float() - 0.5)
    return hidden * torch.logspace(-1, 1, width) + 3.0, kinds.tolist()


def fit_probe(hidden: Tensor, kinds: list[bool]) -> Probe:
    """With one place for each prompt."""
    return probe_module.fit_probe(hidden[None], kinds)


# --- against the clauses, by hand ---


def minimum(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Of a convex function of so many numbers, by Newton's method."""
    x = torch.zeros(size, dtype=torch.float64)
    for _ in range(20):
        x = x - torch.linalg.solve(torch.func.hessian(loss)(x), torch.func.grad(loss)(x))
    assert torch.func.grad(loss)(x).abs().max() < 1e-9
    return x


def direction_by_hand(hidden: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """C11.3, as a function of the states as they are."""
    mean, deviation = hidden.mean(0), hidden.std(0, correction=0)
    spread = (hidden - mean) / deviation
    c = torch.where(y > 0, len(y) / (2 * (y > 0).sum()), len(y) / (2 * (y < 0).sum()))

    def loss(ua: Tensor) -> Tensor:
        u, a = ua[:-1], ua[-1]
        return u @ u / 2 + 1e-4 * (c * torch.log1p(torch.exp(-y * (spread @ u + a)))).sum()

    *_, a = found = minimum(loss, hidden.shape[1] + 1)
    weights = found[:-1] / deviation
    return weights, float(a - weights @ mean)


def probe_by_hand(hidden: Tensor, kinds: list[bool]) -> tuple[Tensor, float, float]:
    """C11.3 and C11.4: weights, bias and AUC."""
    wide, y = hidden.double(), torch.tensor(kinds).double() * 2 - 1
    scores = torch.zeros(len(y), dtype=torch.float64)
    for train, left_out in StratifiedKFold(5, shuffle=True, random_state=0).split(wide, kinds):
        weights, bias = direction_by_hand(wide[train], y[train])
        scores[left_out] = wide[left_out] @ weights + bias
    alpha, beta = minimum(lambda ab: torch.log1p(torch.exp(-y * (ab[0] * scores + ab[1]))).sum(), 2)
    weights, bias = direction_by_hand(wide, y)
    return alpha * weights, float(alpha * bias + beta), roc_auc_score(kinds, scores)


@pytest.mark.parametrize("harmful", [0.5, 0.3])
def test_equals_the_clauses_by_hand_c11_3_c11_4(harmful):
    hidden, kinds = states(1.5, count=100, harmful=harmful)
    found = fit_probe(hidden, kinds)
    weights, bias, auc = probe_by_hand(hidden, kinds)
    wanted = hidden.double() @ weights + bias
    torch.testing.assert_close(found.log_odds(hidden).double(), wanted, atol=1e-3, rtol=1e-3)
    assert found.auc == pytest.approx(auc, abs=1e-3)


# --- what it says of other prompts ---


def test_states_that_lie_apart_are_told_apart():
    hidden, kinds = states(6.0)
    probe = fit_probe(hidden, kinds)
    assert probe.auc > 0.99
    others, theirs = states(6.0, seed=1)
    assert np.mean((probe.log_odds(others) > 0).numpy() == np.array(theirs)) > 0.98


def test_the_log_odds_mean_what_they_say_on_other_prompts():
    """Of two normal kinds they are known; the direction is fitted with far more components than the pool could fix."""
    apart = 1.5
    probe = fit_probe(*states(apart, count=400, width=200))
    others, theirs = states(apart, count=4000, width=200, seed=1)
    odds = probe.log_odds(others)
    for low, high in ((-9, -1), (-1, 0), (0, 1), (1, 9)):
        inside = (odds > low) & (odds <= high)
        assert inside.sum() > 200
        share = torch.tensor(theirs)[inside].float().mean().item()
        assert share == pytest.approx(odds[inside].sigmoid().mean().item(), abs=0.1)
    assert probe.auc == pytest.approx(roc_auc_score(theirs, odds), abs=0.1)


def test_noise_is_not_taken_for_a_difference():
    """More components than prompts tell any pool apart; prompts that were left out say that they do not."""
    probe = fit_probe(*states(0.0, count=64, width=256))
    assert abs(probe.auc - 0.5) < 0.2
    others, _ = states(0.0, count=500, width=256, seed=1)
    assert probe.log_odds(others).abs().mean() < 0.7


@pytest.mark.parametrize(("harmful", "benign"), [(15, 40), (40, 15), (0, 40), (0, 0)])
def test_too_few_prompts_of_a_kind(harmful, benign):
    hidden = torch.randn(harmful + benign, 4)
    with pytest.raises(ConfigError, match=r"easing: .*cannot tell.*\. Set `easing: false`\.$") as caught:
        fit_probe(hidden, [True] * harmful + [False] * benign)
    assert str(min(harmful, benign)) in caught.value.problem


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_states_that_are_all_the_same(noise):
    """As of a tokenizer to which every word is unknown."""
    same = torch.arange(8.0).expand(60, 8) + noise * torch.randn(60, 8)
    with pytest.raises(ConfigError, match=r"easing: .*are the same.*chat template.*easing: false"):
        fit_probe(same, [True] * 30 + [False] * 30)


def test_sixteen_of_a_kind_are_enough():
    assert fit_probe(*states(6.0, count=32)).auc > 0.9


def test_the_same_states_give_the_same_function_whatever_the_random_state():
    hidden, kinds = states(1.0)
    torch.manual_seed(1), np.random.seed(1)
    first, state = fit_probe(hidden, kinds), np.random.get_state()[1].tolist()
    torch.manual_seed(2), np.random.seed(1)
    assert fit_probe(hidden, kinds) == first
    assert np.random.get_state()[1].tolist() == state
    assert fit_probe(hidden.bfloat16(), kinds) != first


FACTORS = st.floats(0.1, 10).flatmap(lambda size: st.sampled_from([size, -size]))


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.lists(st.tuples(FACTORS, st.floats(-10, 10)), min_size=8, max_size=8))
def test_p31_nothing_changes_when_components_are_scaled_or_moved(changes):
    hidden, kinds = states(1.5, count=60)
    others, _ = states(1.5, count=60, seed=1)
    factors, offsets = (torch.tensor(part) for part in zip(*changes, strict=True))
    probe, other = fit_probe(hidden, kinds), fit_probe(hidden * factors + offsets, kinds)
    torch.testing.assert_close(
        other.log_odds(others * factors + offsets), probe.log_odds(others), atol=1e-3, rtol=1e-3
    )
    assert other.auc == pytest.approx(probe.auc, abs=1e-3)


def test_a_component_that_never_changes_says_nothing():
    hidden, kinds = states(1.5)
    constant = torch.cat([hidden, torch.full((len(hidden), 1), 7.0)], 1)
    found = fit_probe(constant, kinds)
    assert torch.isfinite(found.log_odds.weights).all()
    assert found.log_odds.weights[-1] == pytest.approx(0, abs=1e-6)
    assert found.auc == pytest.approx(fit_probe(hidden, kinds).auc, abs=1e-6)


# --- the linear function ---


def test_a_linear_function_is_known_by_what_it_computes():
    weights = torch.tensor([0.5, -2.0, 1.0])
    one, same = LinearFunction(weights, 0.25), LinearFunction(weights.clone(), 0.25)
    assert one == same
    assert hash(one) == hash(same)
    others = [(weights, 0.5), (-weights, 0.25), (weights[:2], 0.25)]
    assert len({one, same, *(LinearFunction(*other) for other in others)}) == 4
    assert one != "another thing"
    assert len(one.digest) == 16
    hidden = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert one(hidden).tolist() == [0.5 - 4.0 + 3.0 + 0.25, 0.25]
    assert one(hidden.bfloat16()).dtype == torch.float32
    assert one(hidden[:0]).shape == (0,)


def test_a_fit_that_differs_by_rounding_is_the_same_function():
    """As on another kind of processor, on which a run goes on: here sums are taken in another order."""
    hidden, kinds = states(1.0, count=400, width=64)
    one, other = (fit_probe(given, kinds).log_odds for given in (hidden, hidden.flip(1)))
    assert one == LinearFunction(other.weights.flip(0), other.bias)


def test_autocast_leaves_its_precision_alone_c6_1():
    hidden, kinds = states(1.0)
    function = fit_probe(hidden, kinds).log_odds
    with torch.autocast("cpu", torch.bfloat16):
        found = function(hidden)
    assert found.dtype == torch.float32
    assert torch.equal(found, function(hidden))


def test_the_digest_knows_the_last_bit():
    weights = torch.tensor([1.0])
    digest = LinearFunction(weights, 0.0).digest
    assert LinearFunction(torch.nextafter(weights, torch.tensor([2.0])), 0.0).digest != digest
    assert LinearFunction(weights, math.ulp(0.0)).digest != digest


def test_a_prompt_with_two_places_is_left_out_at_both_c11_4():
    """Else its other place would give it away: here prompts share nothing but their own two states."""
    hidden, kinds = states(0.0, count=64, width=256)
    found = probe_module.fit_probe(torch.stack([hidden, hidden]), kinds)
    assert found.auc == pytest.approx(fit_probe(hidden, kinds).auc, abs=0.02)
    assert found.auc < 0.7
