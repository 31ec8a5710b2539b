"""Trainers of two objectives that PACT is compared with; on full logits, without gradient accumulation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from trl import SFTTrainer

from pact_plugin.errors import ConfigError

TOKENWISE_BETAS = (0.5, 2.0, 2.0, 2.0, 2.0)
"""β of the first response tokens (Qi et al., ICLR 2025, section 4); it is small afterwards."""
TOKENWISE_BETA = 0.1


def full_kl(reference: Float[Tensor, "N V"], student: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(p_ref ‖ p) in nats over the whole vocabulary, from logits."""
    log_ref, log_p = reference.log_softmax(-1), student.log_softmax(-1)
    return (log_ref.exp() * (log_ref - log_p)).sum(-1)


def tokenwise_loss(
    logprob: Float[Tensor, " N"],
    reference_logprob: Float[Tensor, " N"],
    index: Int[Tensor, " N"],
    scale: float = 1.0,
) -> Float[Tensor, " N"]:
    """Token-wise constrained objective, -2/β_t · log σ(β_t · log(p(y_t) / p_ref(y_t))).

    Source: Qi et al., "Safety alignment should be made more than just a few tokens deep", ICLR 2025, equation 3.

    Args:
        logprob: Log-probabilities of the labels, in nats.
        reference_logprob: The same under the aligned model.
        index: Of each label inside its response, from 0.
        scale: Factor of every β_t; 1 is the paper's.
    """
    betas = torch.full((len(TOKENWISE_BETAS) + 1,), TOKENWISE_BETA)
    betas[:-1] = torch.tensor(TOKENWISE_BETAS)
    beta = scale * betas.to(logprob)[index.clamp(max=len(TOKENWISE_BETAS))]
    return -2 / beta * F.logsigmoid(beta * (logprob - reference_logprob))


class WithReference(SFTTrainer, ABC):
    """Compares the model in training with the aligned one.

    `aligned` and `strength` are set before training.
    """

    aligned: Any
    strength: float

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """See `transformers.Trainer.compute_loss`; one-turn rows."""
        if self.args.gradient_accumulation_steps != 1:
            raise ConfigError(
                "these objectives average over one batch",
                key="gradient_accumulation_steps",
                value=self.args.gradient_accumulation_steps,
                remedy="Set it to 1.",
            )
        keep = inputs["labels"][:, 1:] != -100
        labels = inputs["labels"][:, 1:][keep]
        index = (keep.cumsum(1) - 1)[keep]
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model(**read)
        student = output.logits[:, :-1][keep].float()
        with torch.no_grad():
            reference = self.aligned(**read).logits[:, :-1][keep].float()
        loss = self.objective(student, reference, labels, index)
        return (loss, output) if return_outputs else loss

    @abstractmethod
    def objective(self, student: Tensor, reference: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """From logits [N, V] at response positions, their labels [N] and places [N] in the response."""


class FullKLTrainer(WithReference):
    """Cross-entropy + strength · KL(p_ref ‖ p)."""

    def objective(self, student: Tensor, reference: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See the base class."""
        return F.cross_entropy(student, labels) + self.strength * full_kl(reference, student).mean()


class TokenwiseTrainer(WithReference):
    """The token-wise constrained objective; the strength is a factor of its β."""

    def objective(self, student: Tensor, reference: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See the base class."""

        def of_labels(logits: Tensor) -> Tensor:
            return -F.cross_entropy(logits, labels, reduction="none")

        return tokenwise_loss(of_labels(student), of_labels(reference), index, self.strength).mean()
