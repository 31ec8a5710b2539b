"""Running means of what the terms report: over micro-batches on the device, over an interval for logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pact_plugin.errors import NoResponseError
from pact_plugin.run.finite import require_finite

logger = logging.getLogger("pact_plugin")

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks."""

Number = Tensor | int | float


@dataclass(frozen=True)
class Sums:
    """Sums over a micro-batch, without gradient.

    Args:
        tokens: Those that the task loss counts: its denominator.
        positions: Response positions that a term has looked at.
        means: Metric name -> (sum, count); the metric is sum / count.
        invalid: Numbers of the reference that are NaN or infinite.
        unknown: Number of micro-batches without a known reference; of one, the other fields are 0.
    """

    tokens: Number = 0
    positions: Number = 0
    means: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)
    invalid: Number = 0
    unknown: Number = 0


def no_response(when: str) -> NoResponseError:
    """The error of a run that has nothing to constrain."""
    return NoResponseError(
        f"no response position {when}, so nothing was constrained",
        key="labels",
        remedy="Check that the data set's labels are not all -100 (masking, truncation, chat template).",
    )


class Meter:
    """Adds up without a host synchronisation per step; `flush` brings the sums to the host, over all ranks.

    Args:
        names: Of the metrics, the same on every rank.
        looks: Whether any term looks at response positions.
    """

    def __init__(self, names: Sequence[str], *, looks: bool) -> None:
        self.names, self._looks = tuple(names), looks
        self._seen = self._warned = False
        self._pending: list[Number] | None = None
        self._interval = torch.zeros(4 + 2 * len(self.names), dtype=torch.float64)

    def add(self, sums: Sums) -> None:
        """Add a micro-batch's sums, wherever they are."""
        means = [number for name in self.names for number in sums.means.get(name, (0.0, 0.0))]
        numbers = [sums.tokens, sums.positions, sums.invalid, sums.unknown, *means]
        pending = self._pending
        self._pending = numbers if pending is None else [a + b for a, b in zip(pending, numbers, strict=True)]

    def flush(self, device: torch.device, reduce: Reduce | None = None) -> Sums:
        """Move the pending sums into the interval and return them, as floats.

        With several ranks every rank must call it at the same point, pending sums or not.

        Raises:
            NonFiniteError: A mean, or a number of the reference, is NaN or infinite.
        """
        vector = self._vector()
        if reduce is not None:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            vector = reduce(vector.to(device, dtype)).cpu().double()
        self._pending = None
        self._interval += vector
        return self._finite(vector)

    def pending(self) -> Sums:
        """The sums that no `flush` has moved yet, of this rank alone, as floats. They stay.

        Raises:
            NonFiniteError: As `flush`.
        """
        return self._finite(self._vector())

    def _vector(self) -> Tensor:
        pending = self._pending or [0.0] * len(self._interval)
        return torch.stack([torch.as_tensor(one, dtype=torch.float64, device="cpu") for one in pending])

    def _finite(self, vector: Tensor) -> Sums:
        sums = self._sums(vector)
        require_finite(float(sum(total for total, _ in sums.means.values())), float(sums.invalid))
        return sums

    def _sums(self, vector: Tensor) -> Sums:
        tokens, positions, invalid, unknown, *means = vector.tolist()
        pairs = dict(zip(self.names, zip(means[::2], means[1::2], strict=True), strict=True))
        return Sums(tokens, positions, pairs, invalid, unknown)

    def metrics(self, obstacle: str, *, training: bool, required: bool = False) -> dict[str, float]:
        """Means since the last call, as `pact/NAME`. Empty, with a warning, if the reference was not known everywhere.

        `pact/loss` is all that penalties add to the task's loss for each of its tokens, easing apart.

        Args:
            obstacle: Why a reference that is not known is not computed, as a clause.
            training: Of training, or of an evaluation.
            required: Whether the run must have had a response position by now. Else, and in later intervals, they are
                empty without one; the first time warns.

        Raises:
            NoResponseError: It is required, and there was none yet.
        """
        if not self.names:
            return {}
        total = self._sums(self._interval)
        self._interval = torch.zeros_like(self._interval)
        if total.unknown:
            logger.warning(
                "PACT: %d evaluation batches hold documents that are not in the table, and %s; `pact/*` is left out of "
                "this evaluation.",
                total.unknown,
                obstacle,
            )
            return {}
        if not total.tokens or (self._looks and not total.positions):
            if required and not self._seen:
                raise no_response("since the last log")
            self._warn_of_none(training)
            return {}
        self._seen = True
        return {f"pact/{name}": float(value / count) for name, (value, count) in total.means.items() if count}

    def _warn_of_none(self, training: bool) -> None:
        if not self._warned:
            logger.warning(
                "PACT: the steps since the last log have shown no response position, so `pact/*` is left out of it: "
                "their labels are all -100. Are answers truncated away?"
                if training
                else "PACT: an evaluation has shown no response position, so `pact/*` is left out of it: its labels "
                "are all -100, or its loss does not come from the trainer's `compute_loss`."
            )
        self._warned = True
