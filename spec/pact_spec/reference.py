"""PACT's three functions in float64 NumPy, written to be obviously right.

Clause numbers are those of PACT.md. The conformance vectors are made from the closed-form gradients here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)


def confidence_divergence(
    student_logprobs: Any,
    reference_logprobs: Any,
    student_log_rest: Any = None,
    reference_log_rest: Any = None,
) -> np.ndarray:
    """Clause C2: the divergence over the safety tokens and one bucket for all other tokens, in nats.

    Args:
        student_logprobs: [..., K] log-probabilities under the full vocabulary.
        reference_logprobs: [..., K], likewise.
        student_log_rest: [...] log-probability of all other tokens; derived when absent.
        reference_log_rest: [...], likewise.

    Returns:
        [...] divergences.

    Raises:
        ValueError: The shapes do not fit together, or K is 0.
    """
    student, reference = _buckets(student_logprobs, reference_logprobs, student_log_rest, reference_log_rest)
    result = np.empty(student.shape[:-1])
    for i in np.ndindex(result.shape):
        result[i] = sum(_kl_term(a, b) for a, b in zip(reference[i], student[i], strict=True))
    return result


def confidence_gradient(
    student_logprobs: Any,
    reference_logprobs: Any,
    student_log_rest: Any = None,
    reference_log_rest: Any = None,
) -> np.ndarray:
    """Clause C2.4: the gradient [..., K + 1] with respect to the K + 1 bucket logits, the rest last.

    The buckets' probabilities are a softmax of K + 1 logits; through it, the derivatives p - p_ref with
    respect to the log-probabilities become (p - p_ref) - p * sum(p - p_ref).
    """
    student, reference = _buckets(student_logprobs, reference_logprobs, student_log_rest, reference_log_rest)
    return through_softmax(np.exp(student) - np.exp(reference), np.exp(student))


def through_softmax(gradient: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The gradient with respect to logits, given that with respect to their log-softmax."""
    return gradient - probabilities * gradient.sum(axis=-1, keepdims=True)


def bucket_logprobs(logprobs: Any, log_rest: Any = None) -> np.ndarray:
    """[..., K] and [...] -> [..., K + 1] log-probabilities, the rest last; derived when absent (C2.2)."""
    logprobs = np.asarray(logprobs, dtype=np.float64)
    if log_rest is None:
        log_rest = np.empty(logprobs.shape[:-1])
        for i in np.ndindex(log_rest.shape):
            log_rest[i] = _log_rest(logprobs[i])
    return np.concatenate([logprobs, np.asarray(log_rest, dtype=np.float64)[..., None]], axis=-1)


def published_divergence(
    student: Any,
    reference: Any,
    reference_post: Any,
    weights: Any,
    position: Any,
    *,
    temperature: float = 2.0,
    **gate: float,
) -> np.ndarray:
    """Clause C3: the divergence of the authors' code, within the K safety tokens, in nats.

    Args:
        student: [..., K] logits of the model in training.
        reference: [..., K] logits of the aligned reference in full context.
        reference_post: [..., K] logits of the reference without the prompt.
        weights: [K] safety direction.
        position: [...] index inside the response, from 0.
        temperature: T.
        **gate: The gate's settings; see `published_target`.

    Returns:
        [...] divergences.

    Raises:
        ValueError: The shapes do not fit together, K is 0, a setting is out of range, or the weights are not
            finite with at least one positive.
    """
    q = published_target(
        student, reference, reference_post, weights, position, temperature=temperature, **gate
    )
    result = np.empty(q.shape[:-1])
    for i in np.ndindex(result.shape):
        log_p = _log_softmax(np.asarray(student, dtype=np.float64)[i] / temperature)
        held = range(len(log_p))
        terms = [q[i][k] * (math.log(q[i][k]) - log_p[k]) for k in held if q[i][k] > 0]
        result[i] = temperature**2 * math.fsum(terms)
    return result


def published_gradient(
    student: Any,
    reference: Any,
    reference_post: Any,
    weights: Any,
    position: Any,
    *,
    temperature: float = 2.0,
    **gate: float,
) -> np.ndarray:
    """Clause C3.5: the gradient [..., K] with respect to the student's logits, T (softmax(z / T) - q)."""
    q = published_target(
        student, reference, reference_post, weights, position, temperature=temperature, **gate
    )
    return temperature * (softmax(np.asarray(student, dtype=np.float64) / temperature) - q)


def published_target(
    student: Any,
    reference: Any,
    reference_post: Any,
    weights: Any,
    position: Any,
    *,
    temperature: float = 2.0,
    top_p: float = 0.9,
    alpha: float = 2.0,
    bias: float = 0.0,
    gate_temperature: float = 1.0,
    prefix: float = 8,
    decay: float = 8.0,
    boost: float = 1.0,
) -> np.ndarray:
    """Clauses C3.1 to C3.3: the distribution q [..., K] that the published objective pulls the student to.

    Args:
        student: As `published_divergence`, and so are the next five.
        reference: [..., K]
        reference_post: [..., K]
        weights: [K]
        position: [...]
        temperature: T.
        top_p: Probability that the gate's nucleus holds.
        alpha: Steepness of the gate.
        bias: Offset of the gate.
        gate_temperature: T_g.
        prefix: Number of tokens before the gate decays.
        decay: Length of the decay in tokens; 0 cuts off at once.
        boost: Factor on the gate.
    """
    for name, value in {"temperature": temperature, "gate_temperature": gate_temperature}.items():
        _require(0 < value < math.inf, name, "should be greater than 0")
    for name, value in {"prefix": prefix, "decay": decay}.items():
        _require(0 <= value < math.inf, name, "should be 0 or greater")
    for name, value in {"alpha": alpha, "bias": bias, "boost": boost}.items():
        _require(math.isfinite(value), name, "should be finite")
    _require(0 < top_p <= 1, "top_p", "should be greater than 0 and at most 1")
    student, reference, post, weights, position = (
        np.asarray(x, dtype=np.float64) for x in (student, reference, reference_post, weights, position)
    )
    _require(student.ndim > 0 and student.shape[-1] > 0, "student", "has no safety token")
    _require(reference.shape == student.shape, "reference", "has another shape than student")
    _require(post.shape == student.shape, "reference_post", "has another shape than student")
    _require(weights.shape == student.shape[-1:], "weights", "should have one entry per safety token")
    _require(position.shape == student.shape[:-1], "position", "should have one entry per position")
    _require(bool(np.isfinite(weights).all() and (weights > 0).any()), "weights", "has no positive entry")

    K = len(weights)
    q = np.empty(student.shape)
    for i in np.ndindex(position.shape):
        n_student = nucleus_size(softmax(student[i] / gate_temperature), top_p)
        n_post = nucleus_size(softmax(post[i] / gate_temperature), top_p)
        gate = boost * sigmoid(alpha * (n_student / K - n_post / K - bias))
        if decay > 0:
            gate *= math.exp(-max(position[i] - prefix, 0.0) / decay)
        elif position[i] >= prefix:
            gate = 0.0
        mixed = np.array([_mixture(gate, *pair) for pair in zip(reference[i], post[i], strict=True)])
        q[i] = _weighted_softmax(mixed / temperature, weights)
    return q


def gate_end(prefix: float = 8, decay: float = 8.0, boost: float = 1.0, bound: float = 1e-4) -> int:
    """Clause C3.9: the first t from which boost · f(t) is at most `bound`."""
    t = 0
    while boost * (math.exp(-max(t - prefix, 0.0) / decay) if decay > 0 else float(t < prefix)) > bound:
        t += 1
    return t


def response_positions(
    labels: Sequence[Sequence[int]], starts: Sequence[Sequence[bool]], first_n: int | None = None
) -> tuple[list[tuple[int, int, int]], int]:
    """Clauses C5.3, C5.4 and C5.6: the constrained positions as (row, column, t), and M of these rows (C4.2).

    Args:
        labels: B rows of T token ids, -100 where the model is not trained.
        starts: B rows of T: whether a document starts there (C5.2).
        first_n: n of C5.6; None for all.
    """
    found, count = [], 0
    for row, (row_labels, row_starts) in enumerate(zip(labels, starts, strict=True)):
        t = -1
        for column, (label, start) in enumerate(zip(row_labels, row_starts, strict=True)):
            if start:
                t = -1
            t = t + 1 if label != -100 else -1
            if label == -100 or column == 0:
                continue
            count += 1
            if not start and (first_n is None or t < first_n):
                found.append((row, column, t))
    return found, count


def safety_direction(
    aligned_logits: Iterable[Any], contrast_logits: Iterable[Any], *, top_k: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Clause C8: the safety tokens and their weights.

    Args:
        aligned_logits: Per prompt, [R, V] logits at the response positions.
        contrast_logits: The same of the contrast.
        top_k: Number of tokens to keep.

    Returns:
        Ids [top_k] in ascending order, and their weights [top_k].

    Raises:
        ValueError: A side has no prompt, a prompt no position, the vocabularies differ, `top_k` is not from 2
            to V, or the sides do not differ.
    """
    aligned = _mean_probabilities("aligned_logits", aligned_logits)
    contrast = _mean_probabilities("contrast_logits", contrast_logits)
    _require(aligned.shape == contrast.shape, "contrast_logits", "has another vocabulary")
    _require(2 <= top_k <= len(aligned), "top_k", f"should be from 2 to {len(aligned)}")
    by_probability = sorted(range(len(aligned)), key=lambda token: (-aligned[token], token))
    ids = sorted(by_probability[:top_k])
    difference = np.array([aligned[token] - contrast[token] for token in ids])
    centred = difference - difference.mean()
    norm = math.sqrt(math.fsum(centred**2))
    _require(norm > 0, "contrast_logits", "does not differ from aligned_logits on the kept tokens")
    return np.array(ids), centred / norm


def nucleus_size(probabilities: Sequence[float] | np.ndarray, top_p: float) -> int:
    """Clause C3.1: the smallest n such that the n largest entries sum to at least `top_p`; at most K."""
    total = 0.0
    for n, p in enumerate(sorted(probabilities, reverse=True), start=1):
        total += p
        if total >= top_p:
            return n
    return len(probabilities)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _buckets(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    student, reference = (np.asarray(x, dtype=np.float64) for x in arguments[:2])
    student_rest, reference_rest = (
        None if x is None else np.asarray(x, dtype=np.float64) for x in arguments[2:]
    )
    _require(student.ndim > 0 and student.shape[-1] > 0, "student_logprobs", "has no safety token")
    _require(
        student.shape == reference.shape, "reference_logprobs", "has another shape than student_logprobs"
    )
    for name, rest in (("student_log_rest", student_rest), ("reference_log_rest", reference_rest)):
        _require(rest is None or rest.shape == student.shape[:-1], name, "should have one entry per position")
    return bucket_logprobs(student, student_rest), bucket_logprobs(reference, reference_rest)


def _kl_term(log_reference: float, log_student: float) -> float:
    """p_ref log(p_ref / p) - p_ref + p, with 0 log 0 = 0."""
    p_reference, p_student = math.exp(log_reference), math.exp(log_student)
    if p_reference == 0:
        return p_student
    return p_reference * (log_reference - log_student) - p_reference + p_student


def _log_rest(logprobs: np.ndarray) -> float:
    """log(1 - sum of probabilities), of a remainder of at least the machine epsilon."""
    *others, largest = sorted(float(x) for x in logprobs)
    total = math.fsum(math.exp(x) for x in [*others, largest])
    if total <= 0.5:
        return math.log1p(-total)
    rest = math.fsum([-math.expm1(largest), *(-math.exp(x) for x in others)])
    return math.log(max(rest, EPSILON))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def _mixture(gate: float, reference: float, post: float) -> float:
    """(1 - c) z_ref + c z_post of one token, as clause C1.4 reads it where one is -∞."""
    if reference == post == -math.inf or gate == 0:
        return reference
    return post if gate == 1 else (1 - gate) * reference + gate * post


def _weighted_softmax(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Proportional to exp(logits) * max(weights, 0)."""
    held = weights > 0
    unnormalised = np.zeros(len(weights))
    unnormalised[held] = np.exp(logits[held] - logits[held].max()) * weights[held]
    return unnormalised / unnormalised.sum()


def _mean_probabilities(name: str, prompts: Iterable[Any]) -> np.ndarray:
    means = []
    for prompt in prompts:
        logits = np.asarray(prompt, dtype=np.float64)
        _require(logits.ndim == 2 and logits.size > 0, name, "has a prompt that is not [R, V]")
        means.append(softmax(logits).mean(axis=0))
    _require(len(means) > 0, name, "has no prompt")
    _require(len({len(mean) for mean in means}) == 1, name, "has prompts of different vocabularies")
    return np.mean(means, axis=0)


def _require(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise ValueError(f"{name} {problem}")
