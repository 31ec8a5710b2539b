"""How much of the beginning of a model's refusals its safety tokens hold (clause C8.5 of spec/PACT.md)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

from jaxtyping import Float, Int
from torch import Tensor

from pact_plugin.errors import ConfigError
from pact_plugin.tokens.safety_tokens import SafetyTokens

KEY = "first_token_mass"
"""In the provenance of safety tokens."""
ENOUGH = 0.5
"""Least probability of safety tokens at a refusal's first position, on average, without a warning."""


class Beginnings:
    """The mean next-token probabilities at the first position of the refusals that pass through."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def of(self, refusals: Iterable[Float[Tensor, "R V"]]) -> Iterator[Float[Tensor, "R V"]]:
        """The same logits, one refusal after another, each noted."""
        for logits in refusals:
            first = logits[0].float().softmax(-1)
            self._total = first if self._total is None else self._total + first
            self._count += 1
            yield logits

    def mass(self, ids: Int[Tensor, " K"], weights: Float[Tensor, " K"]) -> float:
        """The probability of the tokens with a positive weight there.

        Warns:
            UserWarning: It is below one half, so that the decision to refuse is hardly seen.
        """
        assert self._total is not None
        mass = float(self._total[ids[weights > 0].to(self._total.device)].sum()) / self._count
        missed = _missed(mass, len(ids))
        if missed is not None:
            warnings.warn(missed, stacklevel=3)
        return mass


def warn_of(tokens: SafetyTokens) -> None:
    """Warn again where tokens are used that were chosen earlier, as `Beginnings.mass` does.

    Warns:
        UserWarning: When they were chosen, they held less than half of the beginning of refusals.

    Raises:
        ConfigError: What their provenance says of it is no number.
    """
    missed = what_is_missed(tokens)
    if missed is not None:
        warnings.warn(missed, stacklevel=3)


def what_is_missed(tokens: SafetyTokens) -> str | None:
    """The text of that warning; None where there is nothing to warn of, or nothing is known.

    Raises:
        ConfigError: What their provenance says of it is no number.
    """
    noted = tokens.provenance.get(KEY)
    if noted is None:
        return None
    try:
        mass = float(noted)
    except ValueError as error:
        raise ConfigError(
            "the provenance of the safety tokens is corrupted: not a number",
            key=KEY,
            value=noted,
            remedy="Choose them again: `pact-plugin tokens select`.",
        ) from error
    return _missed(mass, len(tokens))


def _missed(mass: float, count: int) -> str | None:
    if mass >= ENOUGH:
        return None
    return (
        f"The safety tokens hold {mass:.1%} of the probability at the first word of the model's refusals: "
        f"whether it refuses would hardly be seen, and hardly be kept. Raise `top_k` ({count}), or name "
        "tokens of your own with `safety_tokens`."
    )
