"""SafeGrad: what the task's gradient does against safety is projected out of it.

g_task, the gradient of the cross-entropy; g_kl, that of the mean KL(p_ref ‖ p_θ) on N harmful prompts with the aligned
model's answers. Where ⟨g_task, g_kl⟩ < 0,

    g_task ← g_task - ⟨g_task, g_kl⟩ / ‖g_kl‖² · g_kl

and the step goes along g_task + strength · g_kl. Inner products over all parameters in training together.

Source: Yi et al., "Gradient Surgery for Safe LLM Fine-Tuning", arXiv 2508.07172, from the abstract; not checked against
their code. Whether they project layer by layer, and how they weigh the terms, is not known to us.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.field.encoding import Batch
from benchmarks.field.methods.base import Method, Objective, Trainee
from benchmarks.field.methods.replay_kl import mean_kl


def without_conflict(task: Sequence[Tensor], safety: Sequence[Tensor]) -> list[Tensor]:
    """The task's gradient, orthogonal to that of safety where the two conflict.

    Args:
        task: Its gradient, one tensor for each parameter.
        safety: That of the KL, of the same shapes.
    """
    inner = sum(float((a * b).sum()) for a, b in zip(task, safety, strict=True))
    norm = sum(float(b.square().sum()) for b in safety)
    if inner >= 0 or norm == 0:
        return list(task)
    return [a - inner / norm * b for a, b in zip(task, safety, strict=True)]


class SafeGrad(Objective):
    """Two gradients, of which the task's yields."""

    def __init__(self, trainee: Trainee, strength: float) -> None:
        self.trainee, self.strength, self.pool = trainee, strength, trainee.pool()
        self.conflicts = self.steps = 0

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""]:
        """The mean KL, without its strength."""
        pairs = self.pool.harmful_of_step(number, self.trainee.start.sizes.per_step, self.trainee.seed)
        return mean_kl(self.trainee, pairs)

    def backward(self, task: Float[Tensor, ""], penalty: Tensor | None, parameters: Sequence[Tensor]) -> None:
        """See the module."""
        assert penalty is not None
        own = torch.autograd.grad(task, parameters)
        safety = torch.autograd.grad(penalty, parameters)
        yielding = without_conflict(own, safety)
        self.steps += 1
        self.conflicts += yielding[0] is not own[0]
        for parameter, a, b in zip(parameters, yielding, safety, strict=True):
            parameter.grad = a + self.strength * b

    def notes(self) -> dict[str, int]:
        """In how many steps the gradients conflicted."""
        return {"steps": self.steps, "conflicts": self.conflicts}


SAFEGRAD = {"safegrad": Method("SafeGrad", SafeGrad, strength=1.0)}
