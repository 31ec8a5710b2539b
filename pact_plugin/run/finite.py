"""Stopping at NaN and infinity without making a step wait for the accelerator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pact_plugin.errors import NonFiniteError
from pact_plugin.model.transfer import HostCopy
from pact_plugin.reference.columns import not_finite


class FiniteCheck:
    """Looks at each micro-batch's numbers: at once on the CPU, on an accelerator when the next one comes."""

    def __init__(self) -> None:
        self._noted: HostCopy | None = None

    def add(self, loss: Tensor, invalid: Tensor | float) -> None:
        """Note a micro-batch.

        Args:
            loss: What it has added to the loss, in nats.
            invalid: How many numbers of the reference are not finite.

        Raises:
            NonFiniteError: Those of the micro-batch before, or on the CPU these, are not finite.
        """
        self._check()
        self._noted = HostCopy({"loss": loss, "invalid": torch.as_tensor(invalid)})
        if loss.device.type == "cpu":
            self._check()

    def _check(self) -> None:
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
