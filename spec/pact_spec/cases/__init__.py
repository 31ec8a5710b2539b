"""The cases from which the conformance vectors are generated, by function."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pact_spec.vectors import Case


def logits(seed: int, *shape: int, scale: float = 2.0) -> np.ndarray:
    """Random logits with three decimals, the same on every platform."""
    numbers = random.Random(seed)
    return np.array([round(numbers.gauss(0, scale), 3) for _ in range(int(np.prod(shape)))]).reshape(shape)


def invalid(
    function: str,
    usual: Mapping[str, Any],
    changes: Sequence[tuple[str, str, str, Mapping[str, Any], str]],
    **options: float,
) -> list[Case]:
    """Cases that must raise: (name, clause, description, changed arguments, argument at fault)."""
    return [
        Case(
            function, f"invalid-{name}", clause, description, {**usual, **change}, options, argument=argument
        )
        for name, clause, description, change, argument in changes
    ]
