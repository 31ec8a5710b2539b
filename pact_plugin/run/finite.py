"""Stopping at NaN and infinity without making a step wait for the accelerator."""

from __future__ import annotations

import torch
from torch import Tensor

from pact_plugin.errors import NonFiniteError


class FiniteCheck:
    """Looks at each step's sums: at once on the CPU, on an accelerator when the next step begins."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def add(self, divergence: Tensor, reference_mass: Tensor) -> None:
        """Take note of a step's summed divergence and of the mass that the reference gives to the safety tokens."""
        sums = torch.stack([divergence, reference_mass])
        if sums.device.type == "cuda":
            # The copy is queued behind this step's own work, and an event says when it is there.
            self._host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._host.copy_(sums, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._host = sums
            if sums.device.type == "cpu":
                self.check()

    def check(self) -> None:
        """Raise `NonFiniteError` if the sums noted last were not finite."""
        host, self._host = self._host, None
        if host is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        divergence, reference_mass = host.tolist()
        require_finite(divergence, reference_mass)


def require_finite(divergence: float, reference_mass: float) -> None:
    """Raise `NonFiniteError`, telling the reference from the model in training."""
    for value, key, problem, remedy in (
        (
            reference_mass,
            "reference",
            "NaN or infinity in the reference",
            "Check the aligned model's weights and precision.",
        ),
        (
            divergence,
            "pact/divergence",
            "the constraint became NaN or infinite",
            "Lower the learning rate, or check the task loss, which is usually NaN as well.",
        ),
    ):
        if not torch.isfinite(torch.tensor(value)):
            raise NonFiniteError(problem, key=key, value=value, remedy=remedy)
