"""Stopping at NaN and infinity without making a step wait for the accelerator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pact_plugin.data.transfer import HostCopy
from pact_plugin.errors import NonFiniteError
from pact_plugin.reference.columns import not_finite


class FiniteCheck:
    """Looks at each step's numbers: at once on the CPU, on an accelerator when the next step begins."""

    def __init__(self) -> None:
        self._noted: HostCopy | None = None

    def add(self, loss: Tensor, invalid: Tensor | float) -> None:
        """Note a step: what it has added to the loss, in nats, and how many numbers of the reference are not finite."""
        self._noted = HostCopy({"loss": loss, "invalid": torch.as_tensor(invalid)})
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise `NonFiniteError` if the numbers noted last were not finite."""
        noted, self._noted = self._noted, None
        if noted is not None:
            require_finite(**{name: number.item() for name, number in noted.tensors().items()})


def require_finite(loss: float, invalid: float) -> None:
    """Raise `NonFiniteError`, telling the reference from the model in training.

    Args:
        loss: What was added to the task's loss, in nats.
        invalid: How many numbers of the reference are NaN or infinite.
    """
    if invalid:
        raise not_finite()
    if not math.isfinite(loss):
        raise NonFiniteError(
            "the constraint became NaN or infinite",
            key="pact/loss",
            value=loss,
            remedy="Lower the learning rate, or check the task loss, which is usually NaN as well.",
        )
