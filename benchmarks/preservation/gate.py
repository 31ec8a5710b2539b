"""The published form's gate, in probability space and on absolute probabilities: a trainer for comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.preservation.rivals import WithReference
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.math.gate import published_gate
from pact_plugin.terms.promptfree import assistant_header


class GatedConfidenceTrainer(WithReference):
    """Cross-entropy + strength · the confidence objective, to (1 - c) p_ref + c p_post instead of p_ref.

    p_post is the aligned model's without the prompt (spec C3.8), and no gradient passes c. `safety_ids` are set before
    training, as `aligned` and `strength` are.
    """

    safety_ids: Tensor

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See the base class; one-turn rows, without padding between a prompt and its response."""
        header = torch.tensor(assistant_header(self.processing_class, None), device=inputs["labels"].device)
        responses = [row[row != -100] for row in inputs["labels"]]
        rows = [torch.cat([header, response[:-1]]) for response in responses]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.no_grad():
            logits = self.aligned(input_ids=pad_sequence(rows, batch_first=True), attention_mask=mask).logits[
                :, len(header) - 1 :
            ]
        self._post = torch.cat([row[: len(r)] for row, r in zip(logits, responses, strict=True)]).float()
        return super().compute_loss(model, inputs, *args, **kwargs)

    def objective(self, student: Tensor, reference: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See the base class."""
        ids = self.safety_ids
        c = published_gate(student[:, ids], self._post[:, ids], index)[:, None]
        mixed = (1 - c) * reference.softmax(-1) + c * self._post.softmax(-1)
        target = mixed.log()
        others = torch.ones_like(target, dtype=torch.bool)
        others[:, ids] = False
        log_p = student.log_softmax(-1)
        rests = [torch.where(others, of, -torch.inf).logsumexp(-1) for of in (log_p, target)]
        divergence = confidence_divergence(log_p[:, ids], target[:, ids], *rests)
        return F.cross_entropy(student, labels) + self.strength * divergence.mean()
