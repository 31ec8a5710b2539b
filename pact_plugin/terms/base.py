"""What a term is: the columns that it asks of the aligned model, a scalar with gradient, means for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

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
        world_size: Factor by which the task loss anticipates the averaging of gradients over ranks.

    Raises:
        ConfigError: `micro_batches` is below 1.
    """

    number: int
    micro_batches: int = 1
    tokens: Tensor | int | None = None
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise ConfigError(
                "out of range",
                key="micro_batches",
                value=self.micro_batches,
                remedy="It is the number of micro-batches of this optimiser step, 1 or more.",
            )


@dataclass(frozen=True)
class MicroBatch:
    """What a term is given.

    Args:
        view: The forward pass of the model in training.
        student: What that model says at the response positions.
        aligned: The columns that the terms have asked for.
        step: The optimiser step; None in an evaluation.
        number: Of this micro-batch within the step, from 0.
        task_loss: How the task weighs a token: `nll`, or `dft`, by the token's own probability.
    """

    view: View
    student: Reading
    aligned: Aligned
    step: Step | None = None
    number: int = 0
    task_loss: Literal["nll", "dft"] = "nll"


Mean = tuple[Tensor, Tensor | int]
"""A sum and what it is divided by, both without gradient."""


@dataclass(frozen=True)
class Contribution:
    """A term's part of the loss of a micro-batch, in nats, summed over tokens.

    Args:
        penalty: What is added to the task's summed loss, with gradient.
        relief: What is taken off it, with gradient: the part of the task that yields.
        means: For the metrics, by name.
    """

    penalty: Float[Tensor, ""] | None = None
    relief: Float[Tensor, ""] | None = None
    means: Mapping[str, Mean] = field(default_factory=dict)


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
