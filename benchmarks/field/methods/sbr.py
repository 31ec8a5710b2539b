"""Safety bottleneck regularisation (SBR): the state from which the model begins to answer a prompt stays.

loss = task cross-entropy + strength · mean over N prompts and the d components of (h_θ - h_ref)²

with h [d] the last hidden state, after the final norm, at the end of the prompt in the chat format; strength 50.

- *sbr*: harmful prompts. Source: "Safety Anchor: Defending Harmful Fine-tuning via Geometric Bottlenecks", arXiv
  2605.05995, from its abstract and the notes of others; not checked against the authors' code. Their anchors are few
  and fixed (one suffices, they say). Here the N of a step, two by default, are drawn from the pool's harmful prompts,
  as for every method.
- *sbr-both*: harmful and benign prompts, half of each. Ours.
- *pact-sbr*: *sbr-both* beside `pact: true`, whose anchors come on top of the N prompts. Ours.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.field.encoding import Batch
from benchmarks.field.methods.base import Method, Objective, Trainee
from benchmarks.field.methods.pact import Pact
from pact_plugin import PactConfig
from pact_plugin.data.generation import Pair


class SBR(Objective):
    """Squared error of the last hidden state at the end of prompts.

    Args:
        trainee: The model in training.
        strength: Factor of the error.
        both: Whether half of the prompts are benign; else all are harmful.
    """

    def __init__(self, trainee: Trainee, strength: float, *, both: bool = False) -> None:
        self.trainee, self.strength, self.pool = trainee, strength, trainee.pool()
        self._of_step = self.pool.of_step if both else self.pool.harmful_of_step

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""]:
        """See the module."""
        pairs = self._of_step(number, self.trainee.start.sizes.per_step, self.trainee.seed)
        with self.trainee.aligned():
            reference = self._ends(pairs)
        return self.strength * F.mse_loss(self._ends(pairs).float(), reference.float())

    def _ends(self, pairs: list[Pair]) -> Float[Tensor, "N d"]:
        """The states that the first token of each answer is predicted from."""
        ends = [len(prompt) - 1 for prompt, _ in pairs]

        def where(labels: Tensor) -> Tensor:
            wanted = torch.zeros_like(labels, dtype=torch.bool)
            wanted[range(len(ends)), ends] = True
            return wanted

        return self.trainee.hidden([(prompt, []) for prompt, _ in pairs], where)


class PactSBR(Pact):
    """`pact: true` and SBR at both kinds of prompts; the strength is SBR's."""

    def __init__(self, trainee: Trainee, strength: float) -> None:
        super().__init__({}, trainee, PactConfig().weight)
        self._states = SBR(trainee, strength, both=True)

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""]:
        """See the module."""
        return super().penalty(batch, number) + self._states.penalty(batch, number)


SBR_METHODS = {
    "sbr": Method("SBR", SBR, strength=50.0),
    "sbr-both": Method("SBR, both kinds", partial(SBR, both=True), strength=50.0),
    "pact-sbr": Method("PACT and SBR, both kinds", PactSBR, strength=50.0, config={}),
}
