"""The runner of the vectors fails what is wrong: values, gradients, errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conforming import PACT, failures
from pact_spec import reference
from pact_spec.vectors import FUNCTIONS, load

import pact_plugin

DIVERGENCE = ("student_logprobs", "reference_logprobs", "student_log_rest", "reference_log_rest")


def reversed_divergence(p, q, p_rest, q_rest):
    return pact_plugin.confidence_divergence(q, p, q_rest, p_rest)


def without_the_rest(p, q, p_rest, q_rest):
    return np.sum(np.exp(q) * (q - p), axis=-1)


def blind_to_the_mass(p, q, p_rest, q_rest):
    """The softmax within S, as in the published objective."""
    p = p - np.log(np.exp(p).sum(-1, keepdims=True))
    q = q - np.log(np.exp(q).sum(-1, keepdims=True))
    return np.sum(np.exp(q) * (q - p), axis=-1)


def naive_remainder(p, q, p_rest, q_rest):
    rest = [np.log(1 - np.exp(x).sum(-1)) if r is None else r for x, r in ((p, p_rest), (q, q_rest))]
    return pact_plugin.confidence_divergence(p, q, *rest)


def two_digits(p, q, p_rest, q_rest):
    return np.round(pact_plugin.confidence_divergence(p, q, p_rest, q_rest), 2)


def unsigned_weights(weights, **arguments):
    return pact_plugin.published_divergence(weights=np.abs(weights), **arguments)


def forgets_temperature_squared(temperature=2.0, **arguments):
    return pact_plugin.published_divergence(temperature=temperature, **arguments) / temperature**2


def counts_from_one(position, **arguments):
    return pact_plugin.published_divergence(position=position + 1, **arguments)


def ignores_the_gate(boost=1.0, **arguments):
    return pact_plugin.published_divergence(boost=0.0, **arguments)


def differences(aligned, contrast):
    means = [
        np.mean([reference.softmax(one).mean(0) for one in side], axis=0) for side in (aligned, contrast)
    ]
    return means[0] - means[1]


def not_centred(aligned_logits, contrast_logits, *, top_k):
    ids, _ = pact_plugin.safety_direction(aligned_logits, contrast_logits, top_k=top_k)
    kept = differences(aligned_logits, contrast_logits)[ids]
    return ids, kept / np.linalg.norm(kept)


def chosen_by_difference(aligned_logits, contrast_logits, *, top_k):
    difference = differences(aligned_logits, contrast_logits)
    ids = np.sort(np.argsort(-difference)[:top_k])
    centred = difference[ids] - difference[ids].mean()
    return ids, centred / np.linalg.norm(centred)


def of_log_probabilities(wrong):
    return lambda **arguments: wrong(*(arguments.get(name) for name in DIVERGENCE))


@pytest.mark.parametrize(
    ("function", "wrong", "case", "problem"),
    [
        ("confidence_divergence", of_log_probabilities(reversed_divergence), "remainder-given", "off by"),
        ("confidence_divergence", of_log_probabilities(without_the_rest), "remainder-given", "off by"),
        ("confidence_divergence", of_log_probabilities(blind_to_the_mass), "remainder-given", "off by"),
        ("confidence_divergence", of_log_probabilities(two_digits), "remainder-given", "off by"),
        (
            "confidence_divergence",
            of_log_probabilities(naive_remainder),
            "derived-unresolved-remainder",
            "not finite",
        ),
        ("published_divergence", unsigned_weights, "defaults", "off by"),
        ("published_divergence", forgets_temperature_squared, "defaults", "off by"),
        ("published_divergence", counts_from_one, "slow-decay", "off by"),
        ("published_divergence", ignores_the_gate, "authors-two-responses", "off by"),
        ("safety_direction", not_centred, "paired", "off by"),
        ("safety_direction", chosen_by_difference, "two-tokens", "ids is off by"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_value_fails(function, wrong, case, problem):
    found = failures(SimpleNamespace(**PACT | {function: wrong}))
    assert any(line.startswith(f"{function}/{case}: ") and problem in line for line in found), found
    assert all(line.startswith(function) for line in found)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_accepting_invalid_arguments_fails(function):
    def accepts_anything(**arguments):
        try:
            return PACT[function](**arguments)
        except pact_plugin.PactError:
            return np.zeros(0)

    found = failures(SimpleNamespace(**PACT | {function: accepts_anything}))
    invalid = [case for case in load() if case.function == function and case.expected is None]
    assert len(found) == len(invalid) > 0
    assert all(line.endswith("accepted, but must raise") for line in found)


def test_an_error_that_names_nothing_fails():
    def mute(**arguments):
        try:
            return pact_plugin.confidence_divergence(**arguments)
        except pact_plugin.PactError as error:
            raise ValueError("wrong shape") from error

    found = failures(SimpleNamespace(**PACT | {"confidence_divergence": mute}))
    assert found
    assert all("the error does not name" in line for line in found)


def leaking(p, q, p_rest, q_rest):
    """As the reference implementation, but the aligned side is not cut off."""
    terms = (
        [q.exp() * (q - p), q_rest.exp() * (q_rest - p_rest)] if q_rest is not None else [q * 0, q[..., 0]]
    )
    return terms[0].sum(-1) + terms[1]


def constant(p, q, p_rest, q_rest):
    p_rest = None if p_rest is None else p_rest.detach()
    return pact_plugin.confidence_divergence(p.detach(), q, p_rest, q_rest)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [(leaking, "a gradient reaches reference_logprobs"), (constant, "gradient is off by")],
)
def test_a_wrong_gradient_fails(wrong, problem):
    implementation = SimpleNamespace(**PACT | {"confidence_divergence": of_log_probabilities(wrong)})
    found = failures(implementation, ("torch", "float64"))
    (line,) = (line for line in found if line.startswith("confidence_divergence/remainder-given: "))
    assert problem in line
    assert "value" not in line
