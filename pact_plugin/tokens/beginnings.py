"""How much of the beginning of a model's refusals its safety tokens hold (clause C8.5 of spec/PACT.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jaxtyping import Float, Int
from torch import Tensor

FIRST_TOKEN_MASS = "first_token_mass"
"""Key in the provenance of safety tokens."""


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
        """The probability of the tokens with a positive weight there."""
        assert self._total is not None
        return float(self._total[ids[weights > 0].to(self._total.device)].sum()) / self._count
