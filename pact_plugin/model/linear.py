"""A linear function of hidden states."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LinearFunction:
    """weights · h + bias, in float32. Functions with the same digest are equal.

    Args:
        weights: [d].
        bias: A number.
    """

    weights: Float[Tensor, " d"]
    bias: float
    digest: str = field(init=False)
    """16 hexadecimal digits of weights and bias."""

    def __post_init__(self) -> None:
        content = self.weights.double().cpu().numpy().tobytes() + np.float64(self.bias).tobytes()
        object.__setattr__(self, "digest", hashlib.sha256(content).hexdigest()[:16])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearFunction) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __call__(self, hidden: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Of hidden states. No matrix product, which autocast and TF32 would make a coarser one."""
        return (hidden.float() * self.weights.to(hidden.device)).sum(-1) + self.bias
