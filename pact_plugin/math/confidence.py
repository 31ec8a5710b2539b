"""The divergence of confidence on the safety tokens, per position, over any array library (spec/PACT.md, clause C2).

Computes in float32 at least, gives no gradient to the reference, and lets NaN in the input through to the result: who
calls it decides what a NaN means.
"""

from __future__ import annotations

from types import ModuleType

from jaxtyping import Float

from pact_plugin.math.arrays import Array, promote, require_shape, require_tokens, stop_gradient


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
    require_tokens("student_logprobs", student)
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
    require_tokens("logprobs", logprobs)
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


def _kl_terms(xp: ModuleType, log_reference: Array, log_student: Array) -> Array:
    """p_ref log(p_ref / p) - p_ref + p, elementwise, with 0 log 0 = 0."""
    p_reference = xp.exp(log_reference)
    held = p_reference > 0
    zero = xp.zeros_like(p_reference)
    log_ratio = xp.where(held, log_reference, zero) - xp.where(held, log_student, zero)
    return p_reference * log_ratio - p_reference + xp.exp(log_student)
