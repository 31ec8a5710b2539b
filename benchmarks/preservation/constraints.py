"""Changes of the constraint that only this benchmark has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.data.view import View
from pact_plugin.hooks.manager import find_adapter
from pact_plugin.terms.objectives import Evaluated

RATE = 0.1
"""Change of the logarithm of the weight in a step in which the divergence is twice its target."""
LOWEST, HIGHEST = 0.1, 20.0
"""The weight stays between them."""


class Gated(PactConstraint):
    """Holds the tokens after a response's first as far as the aligned model would refuse at the first."""

    def _evaluate(self, view: View, *, train: bool) -> Evaluated | None:
        found = super()._evaluate(view, train=train)
        if found is None:
            return None
        positions = view.positions
        gate = gates(found.safety_mass_reference, positions.index, positions.response)
        return replace(found, divergence=found.divergence * gate, eased=found.eased * gate)


def gates(mass: Tensor, index: Tensor, response: Tensor) -> Tensor:
    """1 at the first token of each response; at the others how likely the aligned model was to refuse at the first.

    Args:
        mass: [N] of the aligned model's probability that the safety tokens have together.
        index: [N] index of each position inside its response.
        response: [N] number of the response.
    """
    first = index == 0
    of_response = mass.new_zeros(int(response.max()) + 1 if len(response) else 0)
    of_response[response[first]] = mass[first]
    return torch.where(first, 1.0, of_response[response])


class AdaptiveWeight(TrainerCallback):
    """Holds the mean divergence at the training data's positions at a target, by the constraint's weight.

    See `adapted`, once after each optimiser step, with the divergence in this step.

    Args:
        constraint: That of the trainer, at the weight to begin with.
        target: In nats.
    """

    def __init__(self, constraint: PactConstraint, target: float) -> None:
        self._constraint, self._target = constraint, target
        self._positions, self._divergence = 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback.on_step_end`."""
        self._constraint.flush()  # brings the step's sums into the receipt
        receipt = self._constraint.receipt
        positions, divergence = receipt.positions - self._positions, receipt.divergence - self._divergence
        self._positions, self._divergence = receipt.positions, receipt.divergence
        config = self._constraint.config
        weight = adapted(config.weight, divergence / positions, self._target)
        self._constraint.config = config.model_copy(update={"weight": weight})


def adapted(weight: float, divergence: float, target: float) -> float:
    """The next weight: log w grows by RATE · (divergence / target - 1), and w stays from LOWEST to HIGHEST.

    Args:
        weight: The last one.
        divergence: That it has led to, in nats.
        target: What it should be, in nats.
    """
    log_weight = math.log(weight) + RATE * (divergence / target - 1)
    return math.exp(min(max(log_weight, math.log(LOWEST)), math.log(HIGHEST)))


def constrain(trainer: Any, config: PactConfig, kind: type[PactConstraint]) -> Any:
    """As `pact_plugin.attach`, with a constraint of some kind.

    Args:
        trainer: A trainer that has not trained yet.
        config: Settings.
        kind: Class of the constraint.

    Raises:
        PactError: The trainer, the settings, the tokens, the model and the reference do not fit.
    """
    adapter = find_adapter(trainer)
    settings = adapter.configure(trainer, config)
    model, tokenizer = adapter.parts(trainer)
    return adapter.attach(trainer, kind(model, tokenizer, settings))
