"""Running sums of the constraint: over micro-batches on the device, over an interval for logs, over a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pact_plugin.errors import NoResponseError
from pact_plugin.run.finite import require_finite

logger = logging.getLogger("pact_plugin")

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks."""


@dataclass
class Sums:
    """Sums over response positions; `divergence` in nats, the masses as probabilities."""

    divergence: Any = 0.0
    safety_mass: Any = 0.0
    safety_mass_reference: Any = 0.0
    eased: Any = 0.0
    anchor_divergence: Any = 0.0
    """Of each micro-batch: mean divergence at its anchors' positions, times the tokens below."""
    positions: Any = 0
    tokens: Any = 0
    """Tokens that the task loss counts: its denominator."""
    unknown: Any = 0
    """Batches whose reference is not known."""

    def __iadd__(self, other: Sums) -> Sums:
        for name in (item.name for item in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Meter:
    """Adds up without a host synchronisation per step; `flush` brings the sums to the host, over all ranks."""

    def __init__(self, weight: float, *, data: bool = True, anchors: bool = False) -> None:
        self.weight, self.data, self.anchors = weight, data, anchors
        self._pending: Sums | None = None
        self._interval = Sums()

    def add(self, sums: Sums) -> None:
        """Add a micro-batch's sums (tensors without gradient)."""
        if self._pending is None:
            self._pending = sums
        else:
            self._pending += sums

    def flush(self, device: torch.device, reduce: Reduce | None = None) -> Sums:
        """Move the pending sums into the interval and return them, as floats.

        With several ranks every rank must call it at the same point, pending sums or not.

        Raises:
            NonFiniteError: The divergence, or the reference's mass, is NaN or infinite.
        """
        names = [item.name for item in fields(Sums)]
        pending = self._pending or Sums()
        vector = torch.stack(
            [torch.as_tensor(getattr(pending, name), dtype=torch.float64, device="cpu") for name in names]
        )
        if reduce is not None:
            vector = reduce(vector.to(device, _reducible(device))).cpu()
        self._pending = None
        flushed = Sums(**dict(zip(names, vector.tolist(), strict=True)))
        require_finite(flushed.divergence + flushed.anchor_divergence, flushed.safety_mass_reference)
        self._interval += flushed
        return flushed

    def metrics(self, key: str) -> dict[str, float]:
        """Means since the last call.

        `pact/loss` is all that divergences add to the task's loss, easing apart; with anchors theirs is part of it, and
        `pact/anchor_divergence` their mean in nats, weighted as in the loss (spec/PACT.md, clause C10.2). Where anchors
        alone are held, `pact/divergence` is measured and is no part of `pact/loss`, which evaluations then do not have.
        `key`: what to name in the error if there was no response position.

        None, with a warning, if the reference was not known everywhere.

        Raises:
            NoResponseError: No response position in the whole interval.
        """
        total, self._interval = self._interval, Sums()
        if total.unknown:
            logger.warning(
                "PACT: %d evaluation batches hold documents that are not stored, and the aligned model that could "
                "compute them is gone; `pact/*` is left out of this evaluation.",
                total.unknown,
            )
            return {}
        if not total.positions:
            raise NoResponseError(
                "no response position since the last log, so nothing was constrained",
                key=key,
                remedy="Check that the data set's labels are not all -100 (masking, truncation, chat template).",
            )
        tokens = max(total.tokens, 1)
        added = self.weight * (self.data * total.divergence + total.anchor_divergence) / tokens
        anchored = {"pact/anchor_divergence": total.anchor_divergence / tokens} if self.anchors else {}
        return {
            **({"pact/loss": added} if self.data or self.anchors else {}),
            "pact/divergence": total.divergence / total.positions,
            "pact/safety_mass": total.safety_mass / total.positions,
            "pact/safety_mass_reference": total.safety_mass_reference / total.positions,
            "pact/eased": total.eased / total.positions,
            **anchored,
            "pact/positions": total.positions,
        }


def _reducible(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
