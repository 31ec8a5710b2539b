"""Terms with a pass of their own, whose gradient can be made before the data's forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.errors import ConfigError
from pact_plugin.terms.base import Contribution, MicroBatch, OwnPassTerm, Term, combined
from pact_plugin.terms.step import MicroStep


class Ahead:
    """Runs terms with a pass of their own early, and keeps their parts until `loss` asks for them.

    Args:
        terms: All terms of a constraint.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = [term for term in terms if isinstance(term, OwnPassTerm)]
        self._place, self._made = (0, 0), dict[str, Contribution]()

    def add(self, micro: MicroStep, device: torch.device) -> Float[Tensor, ""]:
        """The sum of these terms' penalties in nats, with gradient; without effect where there are none.

        Args:
            micro: The micro-batch.
            device: Of the model in training.
        """
        made = {term.name: term.ahead(micro) for term in self._terms}
        self._place = micro.step.number, micro.number
        self._made = {name: replace(part, penalty=part.penalty.detach()) for name, part in made.items()}
        if not made:
            return torch.zeros((), device=device, requires_grad=True)
        return combined(list(made.values()), device).penalty

    def part(self, term: Term, given: MicroBatch) -> Contribution:
        """A term's part of the loss of a micro-batch: as it was made ahead, then without gradient, or made now.

        Raises:
            ConfigError: It was made ahead for another micro-batch.
        """
        made = self._made.pop(term.name, None)
        if made is None:
            return term(given)
        assert given.micro is not None
        place = given.micro.step.number, given.micro.number
        if place != self._place:
            raise ConfigError(
                f"`ahead` was called for micro-batch {self._place[1] + 1} of step {self._place[0]}, `loss` for "
                f"micro-batch {place[1] + 1} of step {place[0]}",
                key="step",
                value=place[0],
                remedy="Give both calls of a micro-batch the same `step`.",
            )
        return made
