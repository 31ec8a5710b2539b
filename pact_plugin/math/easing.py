"""How far the task yields to a response (spec/PACT.md, clause C2.6)."""

from __future__ import annotations

from jaxtyping import Bool, Float

from pact_plugin.math.arrays import Array, promote, require_shape, stop_gradient


def eased_share(
    log_odds: Float[Array, "*responses"], refuses: Bool[Array, "*responses"]
) -> Float[Array, "*responses"]:
    """The share e of the task's loss that yields at the first tokens of each response.

    e = 1 where the aligned model takes the prompt for a harmful one, log odds above 0, and the data's answer does not
    refuse; else 0. The task's weight there is 1 - e, over the unchanged denominator.

    Args:
        log_odds: That the prompt is harmful, in nats; gets no gradient.
        refuses: Whether the data's answer is a refusal.

    Returns:
        e, 0 or 1, in float32 or the wider type of the input.

    Raises:
        ShapeError: If the shapes do not fit together, or this is not a float array.
    """
    xp, (odds,) = promote(log_odds=log_odds)
    require_shape("refuses", refuses, odds.shape, "one truth value per response")
    odds = stop_gradient(odds)
    return xp.where(refuses | ~(odds > 0), xp.zeros_like(odds), xp.ones_like(odds))
