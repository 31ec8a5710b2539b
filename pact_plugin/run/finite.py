"""Stopping at NaN and infinity without making a step wait for the accelerator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pact_plugin.errors import NonFiniteError


class FiniteCheck:
    """Looks at each step's sums: at once on the CPU, on an accelerator when the next step begins."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, invalid: Tensor | float) -> None:
        """Note a step: what it has added to the loss, in nats, and how many numbers of the reference are not finite."""
        loss = loss.detach()
        # By arithmetic: a copy of a host's number would make the host wait.
        sums = torch.stack([loss, torch.zeros_like(loss) + invalid])
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
        require_finite(*host.tolist())


def require_finite(loss: float, invalid: float) -> None:
    """Raise `NonFiniteError`, telling the reference from the model in training.

    Args:
        loss: What was added to the task's loss, in nats.
        invalid: How many numbers of the reference are NaN or infinite.
    """
    if invalid:
        raise NonFiniteError(
            "NaN or infinity in the reference",
            key="reference",
            remedy="Check the aligned model's weights and precision.",
        )
    if not math.isfinite(loss):
        raise NonFiniteError(
            "the constraint became NaN or infinite",
            key="pact/loss",
            value=loss,
            remedy="Lower the learning rate, or check the task loss, which is usually NaN as well.",
        )
