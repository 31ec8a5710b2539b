"""What a term is: the columns that it asks of the aligned model, a scalar with gradient, means for the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.data.view import View
from pact_plugin.errors import ConfigError
from pact_plugin.reference.columns import Aligned, Columns
from pact_plugin.terms.student import Reading


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


@dataclass(frozen=True)
class MicroBatch:
    """What a term is given: a micro-batch after its forward pass.

    Args:
        view: The forward pass of the model in training.
        student: What that model says at the response positions.
        aligned: The columns that the terms have asked for.
        micro: What was known before; None in an evaluation.
        task_loss: How the task weighs a token: `nll`, or `dft`, by the token's own probability.
    """

    view: View
    student: Reading
    aligned: Aligned
    micro: MicroStep | None = None
    task_loss: Literal["nll", "dft"] = "nll"


Mean = tuple[Tensor, Tensor | int]
"""(sum, count) of a metric, which is sum / count; both without gradient."""


def _nothing() -> Float[Tensor, ""]:
    return torch.zeros(())  # on the host, where it may be added to a scalar of any device


@dataclass(frozen=True)
class Contribution:
    """A term's part of the loss of a micro-batch, or that of all terms, in nats, summed over tokens.

    Args:
        penalty: What is added to the task's summed loss, with gradient.
        relief: What is taken off it, with gradient: the part of the task that yields.
        means: For the metrics, by name.
    """

    penalty: Float[Tensor, ""] = field(default_factory=_nothing)
    relief: Float[Tensor, ""] = field(default_factory=_nothing)
    means: Mapping[str, Mean] = field(default_factory=dict)


def combined(parts: Sequence[Contribution], device: torch.device) -> Contribution:
    """The sums of the terms' parts, on a device, and all their means."""
    zero = torch.zeros((), device=device)
    return Contribution(
        penalty=sum((part.penalty for part in parts), zero),
        relief=sum((part.relief for part in parts), zero),
        means={name: mean for part in parts for name, mean in part.means.items()},
    )


class Term(Protocol):
    """One of the terms that are added to the task's loss."""

    @property
    def name(self) -> str:
        """Its key in the configuration."""
        ...

    @property
    def columns(self) -> tuple[Columns, ...]:
        """What it asks of the aligned model at response positions. Evaluations measure a term that asks something."""
        ...

    @property
    def first(self) -> int | None:
        """First tokens of each response that it looks at; None for all, 0 for none."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its means; `loss` among them if it has a penalty."""
        ...

    def __call__(self, batch: MicroBatch) -> Contribution:
        """Its part of the loss of a micro-batch."""
        ...


@runtime_checkable
class OwnPassTerm(Term, Protocol):
    """A term that brings prompts of its own, and so needs no forward pass of the data."""

    @property
    def digest(self) -> str:
        """Of these prompts."""
        ...

    def ahead(self, micro: MicroStep) -> Contribution:
        """Its part of the loss of a micro-batch, before the forward pass of that."""
        ...
