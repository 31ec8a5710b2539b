"""The safety direction: which tokens an aligned model says when it refuses, and how much more (clause C8)."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from jaxtyping import Float, Int

from pact_plugin.errors import ConfigError, ShapeError
from pact_plugin.math.arrays import Array, promote, require_shape, stop_gradient, values_known


def safety_direction(
    aligned_logits: Iterable[Float[Array, "R V"]],
    contrast_logits: Iterable[Float[Array, "R V"]],
    *,
    top_k: int = 50,
) -> tuple[Int[Array, " top_k"], Float[Array, " top_k"]]:
    """Choose the safety tokens and their weights from what two sides say at their response positions.

    On each side, average the next-token probabilities over the positions of a prompt, then over the prompts.
    Keep the `top_k` tokens that the aligned side says most (of equals, the lower ids); centre the differences
    aligned - contrast over those, and scale them to unit norm.

    The sides need not have the same number of prompts or positions: for the base contrast they have, for the
    benign contrast they have not. The aligned side is read to its end first; one prompt is held at a time.

    Args:
        aligned_logits: Per prompt, the aligned model's logits over the vocabulary at R response positions of
            a safe answer; R may differ from prompt to prompt.
        contrast_logits: The same of the contrast: another model on the same answers, or the same model on
            answers to benign prompts.
        top_k: Number of tokens to keep, from 2 to V.

    Returns:
        The token ids in ascending order, and their weights: of zero mean and unit norm, in float32 or the
        wider type of the input.

    Raises:
        ShapeError: If a side has no prompt, a prompt no position, or the vocabularies differ.
        ConfigError: If `top_k` is out of range, or the two sides do not differ on the kept tokens.
    """
    xp, aligned = _mean_probabilities("aligned_logits", aligned_logits)
    _, contrast = _mean_probabilities("contrast_logits", contrast_logits)
    V = aligned.shape[0]
    require_shape("contrast_logits", contrast, (V,), f"logits over the same vocabulary of {V} tokens")
    if not 2 <= top_k <= V:
        raise ConfigError(
            "the setting is out of range",
            key="top_k",
            value=top_k,
            remedy=f"It must be from 2 to the size of the vocabulary, {V}.",
        )
    ids = xp.sort(xp.argsort(-aligned, axis=0, stable=True)[:top_k])
    weights = xp.take(aligned - contrast, ids, axis=0)
    weights = weights - xp.mean(weights)
    norm = xp.sqrt(xp.sum(weights**2))
    if values_known(norm) and not norm > 0:  # also true of NaN
        raise ConfigError(
            "the two sides do not differ on the kept tokens, or hold NaN",
            key="contrast_logits",
            remedy="Pass the logits of another model, or of other answers.",
        )
    return ids, weights / norm


def _mean_probabilities(name: str, prompts: Iterable[Array]) -> tuple[ModuleType, Array]:
    total, count = None, 0
    for logits in prompts:
        xp, (logits,) = promote(**{name: stop_gradient(logits)})
        if logits.ndim != 2 or 0 in logits.shape:
            raise ShapeError(
                "a prompt's logits should be [R, V] with at least one position",
                key=name,
                value=tuple(logits.shape),
                remedy="Pass the logits at the response positions of each prompt.",
            )
        if total is not None:
            require_shape(name, logits, (logits.shape[0], total.shape[0]), "logits over one vocabulary")
        shifted = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        mean = xp.mean(shifted / xp.sum(shifted, axis=-1, keepdims=True), axis=0)
        total = mean if total is None else total + mean
        count += 1
    if total is None:
        raise ShapeError("there is no prompt", key=name, remedy="Pass the logits of at least one prompt.")
    return xp, total / count
