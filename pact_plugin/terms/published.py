"""The published objective: the loss of the authors' code, to compare with (spec/PACT.md, clause C3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_plugin.config import Published, first_tokens
from pact_plugin.errors import ConfigError
from pact_plugin.math.gate import gate_end
from pact_plugin.math.published import published_divergence
from pact_plugin.reference.columns import Columns
from pact_plugin.terms.base import Contribution, MicroBatch
from pact_plugin.tokens.safety_tokens import SafetyTokens


class PublishedTerm:
    """Adds weight · Σ D_i of C3.4 over the response positions.

    Args:
        settings: Of the objective.
        tokens: All of the safety tokens, with their signed weights.
        header: Tokens before a prompt-free response (C3.8).
        weight: Factor of the divergence.
    """

    name = "published"
    metrics = ("loss", "divergence")

    def __init__(
        self,
        settings: Published,
        tokens: SafetyTokens,
        header: tuple[int, ...],
        weight: float,
    ) -> None:
        first = first_tokens(settings.first)
        end = gate_end(settings.prefix, settings.decay, settings.boost)
        self._logits = Columns("logits", tokens.ids, first)
        self._behind: Columns | None = None
        if end > 0:  # beyond, the gate is closed, and no prompt-free pass is needed (C3.9)
            self._behind = Columns(
                "logits", tokens.ids, end if first is None else min(end, first), behind=header
            )
        self.first = first
        self.columns = (self._logits,) if self._behind is None else (self._logits, self._behind)
        self._weight, self._settings = weight, settings.model_dump(exclude={"first", "assistant_header"})
        self._ids, self._weights = torch.tensor(tokens.ids), torch.tensor(tokens.weights)

    def __call__(self, batch: MicroBatch) -> Contribution:
        """See the class."""
        device = batch.view.hidden.device
        self._ids, self._weights = self._ids.to(device), self._weights.to(device)
        where, reference = batch.view.within(self._logits.first), batch.aligned[self._logits]
        divergence = published_divergence(
            batch.student.logits(self._ids)[where],
            reference,
            self._prompt_free(batch, reference),
            self._weights,
            batch.view.positions.index[where],
            **self._settings,
        )
        total = divergence.sum()
        return Contribution(
            penalty=self._weight * total, means={"divergence": (total.detach(), divergence.shape[0])}
        )

    def _prompt_free(self, batch: MicroBatch, reference: Tensor) -> Tensor:
        """Logits without the prompt, and those with it where the gate is closed."""
        if self._behind is None:
            return reference
        opened = batch.view.within(self._behind.first)
        if isinstance(opened, slice):
            return batch.aligned[self._behind]
        return reference.index_copy(0, opened, batch.aligned[self._behind])


def assistant_header(tokenizer: Any, text: str | None) -> tuple[int, ...]:
    """Token ids that come before a response: the given text, else what the chat template adds for a generation.

    Raises:
        ConfigError: No text was given and the tokenizer has no chat template that opens an assistant turn.
    """
    ids: list[int] = []
    if text is not None:
        ids = tokenizer.encode(text, add_special_tokens=False)
    elif getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": "Hello"}]
        closed = tokenizer.apply_chat_template(turn, tokenize=False)
        opened = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if opened.startswith(closed):
            ids = tokenizer.encode(opened[len(closed) :], add_special_tokens=False)
        bos = getattr(tokenizer, "bos_token", None)
        if ids and bos and closed.startswith(bos):
            ids = [tokenizer.bos_token_id, *ids]
    if not ids:
        raise ConfigError(
            "no assistant header: the text before a response, without a prompt, is not known",
            key="advanced.published.assistant_header",
            value=text,
            remedy="Set it to the text that opens an assistant turn, or give the tokenizer a chat template.",
        )
    return tuple(ids)
