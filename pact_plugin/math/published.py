"""The divergence of the authors' published code, per position, over any array library (spec/PACT.md, clause C3).

Computes in float32 at least, gives no gradient to the references, and lets NaN in the input through to the result.
"""

from __future__ import annotations

import math
from types import ModuleType

from jaxtyping import Float

from pact_plugin.errors import ConfigError
from pact_plugin.math.arrays import (
    Array,
    as_array_like,
    log_softmax,
    promote,
    require_shape,
    require_tokens,
    stop_gradient,
    values_at_hand,
)
from pact_plugin.math.gate import published_gate, require_settings


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
    require_tokens("student", student)
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


def _mixture(xp: ModuleType, gate: Array, reference: Array, post: Array) -> Array:
    """(1 - gate) · reference + gate · post, with 0 · ∞ = 0; a token that is masked in both stays masked."""
    masked = xp.isinf(reference) & xp.isinf(post)
    total = zero = xp.zeros_like(reference)
    for factor, logits in ((1 - gate, reference), (gate, post)):
        left_out = xp.isinf(logits) & (masked | (factor == 0))
        total = total + factor * xp.where(left_out, zero, logits)
    return xp.where(masked, reference, total)


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
