"""Replay of the aligned model's own answers, to harmful and benign prompts alike.

loss = task cross-entropy + strength · mean over the replayed tokens of -log p_θ(a_t | prompt, a_<t)

with a the aligned model's greedy answer to a prompt of the pool, its first 16 tokens. The pool's prompts are extra rows
beside the task's. Rehearsal with a model's own output as in self-distillation (Yang et al., ACL 2024) and safety
data mixed in (Bianchi et al., ICLR 2024), but two-sided: benign prompts as well. A baseline of ours rather than any
paper's method.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.field.encoding import Batch
from benchmarks.field.methods.base import Method, Objective, Trainee, answer_tokens, before_answers


class Replay(Objective):
    """Cross-entropy on the aligned model's answers."""

    def __init__(self, trainee: Trainee, strength: float) -> None:
        self.trainee, self.strength, self.pool = trainee, strength, trainee.pool()

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""]:
        """See the module."""
        pairs = self.pool.of_step(number, self.trainee.start.sizes.per_step, self.trainee.seed)
        hidden = self.trainee.hidden(pairs, before_answers)
        labels = answer_tokens(pairs).to(hidden.device)
        return self.strength * F.cross_entropy(self.trainee.head.logits(hidden), labels)


REPLAY = {"replay": Method("replay", Replay, strength=1.0)}
