"""What a term is: the columns that it asks of the aligned model, a scalar with gradient, means for the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.data.view import View
from pact_plugin.reference.columns import Aligned, Columns
from pact_plugin.terms.step import MicroStep
from pact_plugin.terms.student import Reading


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
        """Of these prompts, and the aligned model's answers to them."""
        ...

    def ahead(self, micro: MicroStep) -> Contribution:
        """Its part of the loss of a micro-batch, before the forward pass of that."""
        ...
