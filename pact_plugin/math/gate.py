"""The gate of the published form: where the model in training spreads over more safety tokens than the reference."""

from __future__ import annotations

import math
from types import ModuleType

from jaxtyping import Float

from pact_plugin.errors import ConfigError
from pact_plugin.math.arrays import Array, as_array_like, log_softmax, promote, require_shape, stop_gradient

GATE_CLOSED = 1e-4
"""Where c is at most this, it is taken as 0 and the prompt-free reference is not needed (clause C3.9)."""


def published_gate(
    student: Float[Array, "*positions K"],
    reference_post: Float[Array, "*positions K"],
    position: Float[Array, "*positions"],
    *,
    top_p: float = 0.9,
    alpha: float = 2.0,
    bias: float = 0.0,
    gate_temperature: float = 1.0,
    prefix: float = 8,
    decay: float = 8.0,
    boost: float = 1.0,
) -> Float[Array, "*positions"]:
    """How far the published target moves to the prompt-free reference (clauses C3.1 and C3.2).

    Args:
        student: Logits of the K safety tokens from the model in training; they get no gradient.
        reference_post: The same from the reference without the prompt.
        position: Index of the token inside its response, from 0. An array or a sequence.
        top_p: Probability that a nucleus holds, in (0, 1].
        alpha: Steepness.
        bias: Offset, in parts of the K tokens.
        gate_temperature: T_g, at which the nuclei are counted.
        prefix: Number of first tokens over which it does not decay.
        decay: Length in tokens over which it then decays by a factor of e; 0 cuts it off at once.
        boost: Factor.

    Returns:
        The gate c at each position, without gradient, in float32 or the wider type of the input.

    Raises:
        ShapeError: If the shapes do not fit, or these are not float arrays.
        ConfigError: If a setting is out of range.
    """
    require_settings(
        {
            "top_p": (top_p, 0 < top_p <= 1, "greater than 0 and at most 1"),
            "gate_temperature": (gate_temperature, 0 < gate_temperature < math.inf, "greater than 0"),
            "prefix": (prefix, 0 <= prefix < math.inf, "0 or greater"),
            "decay": (decay, 0 <= decay < math.inf, "0 or greater"),
            "alpha": (alpha, math.isfinite(alpha), "finite"),
            "bias": (bias, math.isfinite(bias), "finite"),
            "boost": (boost, math.isfinite(boost), "finite"),
        }
    )
    xp, (student, post) = promote(student=student, reference_post=reference_post)
    student, post = stop_gradient(student), stop_gradient(post)
    position = as_array_like(position, student, xp)
    require_shape("reference_post", post, student.shape, "[..., K], as student")
    require_shape("position", position, student.shape[:-1], "one index per position")
    widening = _nucleus_size(xp, student / gate_temperature, top_p)
    widening = (widening - _nucleus_size(xp, post / gate_temperature, top_p)) / student.shape[-1]
    return boost * _sigmoid(xp, alpha * (widening - bias)) * _fading(xp, position, prefix, decay)


def gate_end(prefix: int, decay: float, boost: float) -> int:
    """The first t from which the gate stays below `GATE_CLOSED`: its bound is boost · f(t) (clause C3.9)."""
    if boost <= GATE_CLOSED:
        return 0
    if decay == 0:
        return prefix
    return math.ceil(prefix + decay * math.log(boost / GATE_CLOSED))


def require_settings(rules: dict[str, tuple[float, bool, str]]) -> None:
    """Refuse a setting that is out of range.

    Args:
        rules: By name the value, whether it is allowed, and what is.

    Raises:
        ConfigError: Names the first that is not.
    """
    for name, (value, allowed, rule) in rules.items():
        if not allowed:
            raise ConfigError(
                "the setting is out of range", key=name, value=value, remedy=f"It must be {rule}."
            )


def _nucleus_size(xp: ModuleType, logits: Array, top_p: float) -> Array:
    """The smallest n such that the n largest probabilities sum to at least `top_p`; at most K."""
    falling = -xp.sort(-xp.exp(log_softmax(xp, logits)), axis=-1)
    short = xp.cumulative_sum(falling, axis=-1)[..., :-1] < top_p  # n entries are too few
    return 1 + xp.sum(xp.astype(short, logits.dtype), axis=-1)


def _sigmoid(xp: ModuleType, x: Array) -> Array:
    return (1 + xp.tanh(x / 2)) / 2


def _fading(xp: ModuleType, position: Array, prefix: float, decay: float) -> Array:
    if decay == 0:
        return xp.astype(position < prefix, position.dtype)
    return xp.exp(-xp.clip(position - prefix, min=0.0) / decay)
