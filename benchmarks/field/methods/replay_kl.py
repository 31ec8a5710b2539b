"""The same replay, held by the whole distribution instead of the one token that was said.

loss = task cross-entropy + strength · mean over the same positions of KL(p_ref ‖ p_θ), over the full vocabulary

with p_ref the aligned model. Distillation at replayed positions (Hinton et al. 2015; Li & Hoiem, "Learning without
forgetting", 2016), exact. At a strength of 1 the gradient has the scale of replay's, as cross-entropy with soft labels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from benchmarks.field.encoding import Batch
from benchmarks.field.methods.base import Method, Objective, Trainee, before_answers
from pact_plugin.data.generation import Pair


def full_kl(reference: Float[Tensor, "N V"], student: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(p_ref ‖ p_θ) in nats over the whole vocabulary, from logits."""
    log_ref, log_p = reference.log_softmax(-1), student.log_softmax(-1)
    return (log_ref.exp() * (log_ref - log_p)).sum(-1)


def mean_kl(trainee: Trainee, pairs: list[Pair]) -> Float[Tensor, ""]:
    """Mean KL(p_ref ‖ p_θ) over the tokens of answers, in nats."""
    with trainee.aligned():
        reference = trainee.head.logits(trainee.hidden(pairs, before_answers))
    return full_kl(reference, trainee.head.logits(trainee.hidden(pairs, before_answers))).mean()


class ReplayKL(Objective):
    """Full-vocabulary KL at the aligned model's answers."""

    def __init__(self, trainee: Trainee, strength: float) -> None:
        self.trainee, self.strength, self.pool = trainee, strength, trainee.pool()

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""]:
        """See the module."""
        pairs = self.pool.of_step(number, self.trainee.start.sizes.per_step, self.trainee.seed)
        return self.strength * mean_kl(self.trainee, pairs)


REPLAY_KL = {"replay-kl": Method("replay, full KL", ReplayKL, strength=1.0)}
