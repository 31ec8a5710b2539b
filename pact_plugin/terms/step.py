"""Where in a run a micro-batch is: its optimiser step, and its number within this."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """An optimiser step, as the loop around it knows it.

    Args:
        number: From 1.
        micro_batches: Calls of `loss` with this number on each rank, over which the step's anchors are spread.
        tokens: The task loss's denominator: its tokens over the whole step and all ranks; None for those of the batch.
        world_size: The number of ranks if gradients are averaged over them and `tokens` counts all ranks; else 1
            (C4.3).

    Raises:
        ConfigError: `number` or `micro_batches` is below 1.
    """

    number: int
    micro_batches: int = 1
    tokens: Tensor | int | None = None
    world_size: int = 1

    def __post_init__(self) -> None:
        for key, value in (("number", self.number), ("micro_batches", self.micro_batches)):
            if value < 1:
                raise ConfigError(
                    "out of range",
                    key=key,
                    value=value,
                    remedy="`number` counts the optimiser steps of the run, `micro_batches` those of this step: 1 or "
                    "more.",
                )

    def require_from(self, last: int) -> None:
        """Refuse a step before the last one: it would have the same anchors again, and count once.

        Raises:
            ConfigError: It is.
        """
        if self.number < last:
            raise ConfigError(
                f"it goes back, from {last}",
                key="number",
                value=self.number,
                remedy="Count the optimiser steps of the whole run, over all epochs; for a new run call "
                "`constraint.record.begin()`.",
            )

    def per_token(self, total: Float[Tensor, ""], trained: Tensor) -> Float[Tensor, ""]:
        """A sum over the tokens of a micro-batch as its part of the step's loss (clause C4.3).

        Args:
            total: In nats.
            trained: Labels of the micro-batch that the task loss counts.
        """
        count: Tensor | int = trained if self.tokens is None else self.tokens
        if torch.is_tensor(count) and count.device.type != "cpu":
            count = count.to(total.device).clamp(min=1)  # the host need not wait for it
        else:
            count = max(int(count), 1)
        return total / count * self.world_size


@dataclass(frozen=True)
class MicroStep:
    """A micro-batch before its forward pass: one pass of gradient accumulation.

    Args:
        step: The optimiser step.
        number: Of this micro-batch within the step, from 0.
        trained: Labels that the task loss counts; 1 where it counts none (clause C10.6).
        autocast: The precision that the model runs in.
        apart: Whether what is added has a backward pass of its own, before the forward pass of the batch.
    """

    step: Step
    number: int
    trained: Tensor | int
    autocast: AbstractContextManager[Any]
    apart: bool = False
