"""How far the task yields where the aligned model would refuse (spec/PACT.md, clause C2.6)."""

from __future__ import annotations

from jaxtyping import Bool, Float

from pact_plugin.math.arrays import Array, promote, require_shape, stop_gradient


def eased_share(
    reference_log_mass: Float[Array, "*positions"], label_in_safety: Bool[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """The share e of the task loss that yields at each position.

    e = min(1, P(S)), the probability of the safety tokens together under the reference, where the label is not one of
    them, and 0 where it is. The task's weight there is 1 - e, over the unchanged denominator.

    Args:
        reference_log_mass: log P(S) under the reference, in nats; gets no gradient.
        label_in_safety: Whether the label at the position is a safety token.

    Returns:
        e in [0, 1], in float32 or the wider type of the input.

    Raises:
        ShapeError: If the shapes do not fit together, or this is not a float array.
    """
    xp, (log_mass,) = promote(reference_log_mass=reference_log_mass)
    require_shape("label_in_safety", label_in_safety, log_mass.shape, "one truth value per position")
    mass = xp.clip(xp.exp(stop_gradient(log_mass)), max=1.0)
    return xp.where(label_in_safety, xp.zeros_like(mass), mass)
