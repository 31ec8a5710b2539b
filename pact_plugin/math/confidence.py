"""The two divergences of PACT, per response position, over any array library (see spec/PACT.md).

Both compute in float32 at least, give no gradient to the reference, and let NaN in the input through to the
result: who calls them decides what a NaN means.
"""

from __future__ import annotations

import math
from types import ModuleType

from jaxtyping import Bool, Float

from pact_plugin.errors import ConfigError, ShapeError
from pact_plugin.math.arrays import (
    Array,
    as_array_like,
    log_softmax,
    promote,
    require_shape,
    stop_gradient,
    values_at_hand,
)
from pact_plugin.math.gate import published_gate, require_settings


def confidence_divergence(
    student_logprobs: Float[Array, "*positions K"],
    reference_logprobs: Float[Array, "*positions K"],
    student_log_rest: Float[Array, "*positions"] | None = None,
    reference_log_rest: Float[Array, "*positions"] | None = None,
) -> Float[Array, "*positions"]:
    """How far the student's confidence on the safety tokens is from the reference's (clause C2).

    With p(k) the probability of safety token k and r = 1 - sum_k p(k) the probability of all other tokens:
    D = sum_k p_ref(k) log(p_ref(k) / p(k)) + r_ref log(r_ref / r).

    Each of the K + 1 terms is computed as p_ref log(p_ref / p) - p_ref + p. What is added sums to zero; it
    makes every term non-negative, and the gradient exactly zero at the reference, whatever the rounding.

    Args:
        student_logprobs: Log-probabilities of the safety tokens under the full vocabulary, in nats.
        reference_logprobs: The same under the aligned reference; gets no gradient.
        student_log_rest: log r of the student. Derived when absent, which resolves r only down to the machine
            epsilon: pass it where r may be smaller.
        reference_log_rest: log r of the reference; likewise.

    Returns:
        The divergence at each position in nats, in float32 or the wider type of the input.

    Raises:
        ShapeError: If the shapes do not fit, there is no safety token, or these are not float arrays.
    """
    given = {"student_logprobs": student_logprobs, "reference_logprobs": reference_logprobs}
    rests = {"student_log_rest": student_log_rest, "reference_log_rest": reference_log_rest}
    given |= {name: rest for name, rest in rests.items() if rest is not None}
    xp, arrays = promote(**given)
    named = dict(zip(given, arrays, strict=True))
    student, reference = named["student_logprobs"], stop_gradient(named["reference_logprobs"])
    _require_tokens("student_logprobs", student)
    require_shape("reference_logprobs", reference, student.shape, "[..., K], as student_logprobs")
    for name in rests:
        if name in named:
            require_shape(
                name, named[name], student.shape[:-1], "[...]: student_logprobs without its last axis"
            )
    student_rest = named.get("student_log_rest")
    reference_rest = named.get("reference_log_rest")
    if student_rest is None:
        student_rest = log_rest(student)
    reference_rest = log_rest(reference) if reference_rest is None else stop_gradient(reference_rest)
    on_tokens = xp.sum(_kl_terms(xp, reference, student), axis=-1)
    return on_tokens + _kl_terms(xp, reference_rest, student_rest)


def log_rest(logprobs: Float[Array, "*positions K"]) -> Float[Array, "*positions"]:
    """log(1 - sum_k exp(logprobs[k])): the log-probability of every token outside S (clause C2.2).

    A remainder below the machine epsilon is not resolved, and taken as the epsilon; its gradient is kept.

    Args:
        logprobs: Log-probabilities of the safety tokens under the full vocabulary, in nats.

    Returns:
        The log-probability at each position in nats, in float32 or the wider type of the input.

    Raises:
        ShapeError: If there is no safety token, or this is not a float array.
    """
    xp, (logprobs,) = promote(logprobs=logprobs)
    _require_tokens("logprobs", logprobs)
    ordered = xp.sort(logprobs, axis=-1)
    others = xp.sum(xp.exp(ordered[..., :-1]), axis=-1)
    total = xp.exp(ordered[..., -1]) + others
    # 1 - total would round away what expm1 keeps when one token holds nearly everything.
    rest = -xp.expm1(ordered[..., -1]) - others
    rest = rest + stop_gradient(xp.clip(rest, min=xp.finfo(rest.dtype).eps) - rest)
    # Each side sees harmless values where the other is chosen, so that its gradient is finite.
    near = total > 0.5
    rest = xp.where(near, rest, xp.ones_like(rest))
    total = xp.where(near, xp.zeros_like(total), total)
    return xp.where(near, xp.log(rest), xp.log1p(-total))


def eased_share(
    reference_logprobs: Float[Array, "*positions K"], label_in_safety: Bool[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """The share e of the task loss that yields to the constraint at each position (clause C2.6).

    e is the probability that the reference gives to the safety tokens where the label is not one of them, and
    0 where it is. The task's weight there is 1 - e, over the unchanged denominator.

    Args:
        reference_logprobs: Log-probabilities of the safety tokens under the reference; gets no gradient.
        label_in_safety: Whether the label at the position is a safety token.

    Returns:
        e in [0, 1], in float32 or the wider type of the input.

    Raises:
        ShapeError: If the shapes do not fit together, there is no safety token, or this is not a float array.
    """
    xp, (logprobs,) = promote(reference_logprobs=reference_logprobs)
    _require_tokens("reference_logprobs", logprobs)
    require_shape("label_in_safety", label_in_safety, logprobs.shape[:-1], "one truth value per position")
    mass = xp.clip(xp.sum(xp.exp(stop_gradient(logprobs)), axis=-1), max=1.0)
    return xp.where(label_in_safety, xp.zeros_like(mass), mass)


def published_divergence(
    student: Float[Array, "*positions K"],
    reference: Float[Array, "*positions K"],
    reference_post: Float[Array, "*positions K"],
    weights: Float[Array, " K"],
    position: Float[Array, "*positions"],
    *,
    temperature: float = 2.0,
    top_p: float = 0.9,
    alpha: float = 2.0,
    bias: float = 0.0,
    gate_temperature: float = 1.0,
    prefix: float = 8,
    decay: float = 8.0,
    boost: float = 1.0,
) -> Float[Array, "*positions"]:
    """The divergence of the authors' published code, within the safety tokens (clause C3).

    Its minimum is at a weighted mixture q of two references, not at the reference, and it does not see how
    much probability the safety tokens hold together: `confidence_divergence` does.

    Args:
        student: Logits of the K safety tokens from the model in training.
        reference: The same from the aligned reference in full context; gets no gradient.
        reference_post: The same from the reference that sees only the assistant header and the response so
            far; gets no gradient.
        weights: Safety direction; only its positive part enters. An array or a sequence of floats.
        position: Index of the token inside its response, from 0. An array or a sequence.
        temperature: T, at which the two distributions are compared.
        top_p: Probability that the gate's nucleus holds, in (0, 1].
        alpha: Steepness of the gate.
        bias: Offset of the gate.
        gate_temperature: T_g, at which the gate's nuclei are counted.
        prefix: Number of first tokens over which the gate does not decay.
        decay: Length in tokens over which it then decays by a factor of e; 0 cuts it off at once.
        boost: Factor on the gate.

    Returns:
        The divergence at each position in nats (times T squared), in float32 or the wider type of the input.

    Raises:
        ShapeError: If the shapes do not fit, there is no safety token, or these are not float arrays.
        ConfigError: If a setting is out of range, or `weights` is not finite or has no positive entry.
            (The values are not looked at on an accelerator, which would make each step wait, nor while
            `jax.jit` or `torch.compile` traces.)
    """
    require_settings({"temperature": (temperature, 0 < temperature < math.inf, "greater than 0")})
    xp, (student, reference, post) = promote(
        student=student, reference=reference, reference_post=reference_post
    )
    reference, post = stop_gradient(reference), stop_gradient(post)
    given, weights = weights, as_array_like(weights, student, xp)
    _require_tokens("student", student)
    require_shape("reference", reference, student.shape, "[..., K], as student")
    require_shape("reference_post", post, student.shape, "[..., K], as student")
    require_shape("weights", weights, student.shape[-1:], "one weight per safety token")
    _require_positive_weight(weights if values_at_hand(weights) else given)

    gate = published_gate(
        student,
        post,
        position,
        top_p=top_p,
        alpha=alpha,
        bias=bias,
        gate_temperature=gate_temperature,
        prefix=prefix,
        decay=decay,
        boost=boost,
    )[..., None]
    mixed = _mixture(xp, gate, reference, post)

    positive = weights > 0
    log_weights = xp.where(positive, xp.log(xp.where(positive, weights, xp.ones_like(weights))), -math.inf)
    log_q = log_softmax(xp, mixed / temperature + log_weights)
    q = xp.exp(log_q)
    log_p = log_softmax(xp, student / temperature)
    held, zero = q > 0, xp.zeros_like(log_p)
    terms = q * (xp.where(held, log_q, zero) - xp.where(held, log_p, zero))  # 0 log 0 = 0
    return temperature**2 * xp.sum(terms, axis=-1)


def _kl_terms(xp: ModuleType, log_reference: Array, log_student: Array) -> Array:
    """p_ref log(p_ref / p) - p_ref + p, elementwise, with 0 log 0 = 0."""
    p_reference = xp.exp(log_reference)
    held = p_reference > 0
    zero = xp.zeros_like(p_reference)
    log_ratio = xp.where(held, log_reference, zero) - xp.where(held, log_student, zero)
    return p_reference * log_ratio - p_reference + xp.exp(log_student)


def _mixture(xp: ModuleType, gate: Array, reference: Array, post: Array) -> Array:
    """(1 - gate) · reference + gate · post, with 0 · ∞ = 0; a token that is masked in both stays masked."""
    masked = xp.isinf(reference) & xp.isinf(post)
    total = zero = xp.zeros_like(reference)
    for factor, logits in ((1 - gate, reference), (gate, post)):
        left_out = xp.isinf(logits) & (masked | (factor == 0))
        total = total + factor * xp.where(left_out, zero, logits)
    return xp.where(masked, reference, total)


def _require_tokens(name: str, array: Array) -> None:
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ShapeError(
            "there is no safety token",
            key=name,
            value=tuple(array.shape),
            remedy="Pass [..., K] with K of at least 1.",
        )


def _require_positive_weight(weights: Array) -> None:
    if not values_at_hand(weights):
        return
    values = weights.tolist() if hasattr(weights, "tolist") else list(weights)
    if not (all(map(math.isfinite, values)) and max(values) > 0):
        raise ConfigError(
            "the safety direction is not finite, or no weight is positive",
            key="weights",
            value=weights,
            remedy="Pass finite weights of which at least one is greater than 0.",
        )
