"""What the aligned model predicts at response positions, by passes of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pact_plugin.data.documents import SOMETHING, Document, Row, full_context, prompt_free, row_batch
from pact_plugin.data.view import View
from pact_plugin.reference.source import Reference

_CUT = {"input_ids", "attention_mask", "position_ids", "use_cache", "past_key_values", "inputs_embeds"} | {
    *(f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"),
    "num_items_in_batch",  # the plain Trainer's, for the loss
}
"""Arguments of a decoder that say nothing but token ids and boundaries."""


@dataclass(frozen=True)
class Aligned:
    """The aligned model at N response positions."""

    values: Float[Tensor, "N K"]
    """Log-probabilities of the safety tokens (confidence), or their logits (published)."""
    log_rest: Float[Tensor, " N"] | None = None
    """log r (confidence)."""
    post: Float[Tensor, "N K"] | None = None
    """Logits without the prompt (published); those in `values` where the gate is closed."""


@dataclass(frozen=True)
class Passes:
    """Computes the aligned model's predictions.

    Args:
        reference: The aligned model.
        ids: [K] safety tokens.
        chunk_size: Positions projected on the vocabulary at a time.
        header: Tokens before a prompt-free response; None for the confidence objective.
        end: The first t whose gate is closed.
        first_n: Whether only the first tokens of responses are wanted, so that a pass can end there.
    """

    reference: Reference
    ids: Int[Tensor, " K"]
    chunk_size: int
    header: Sequence[int] | None
    end: int
    first_n: bool

    def of_view(self, view: View) -> Aligned:
        """At the positions of a forward pass, with the reference in its place."""
        with self.reference.session():
            post = [] if self.header is None else [r for d in view.documents for r in self._post(d)]
            if self._can_cut(view):
                rows = [full_context(document) for document in view.documents]
                if post and self._flat:
                    states = self._states(rows + post, view.autocast)
                    split = len(view.host_positions)
                    return self._read(states[:split], states[split:], view.host_positions.index)
                full = self._states(rows, view.autocast)
                if self._flat:
                    return self._read(full, full[:0], view.host_positions.index)
            else:
                hidden = self.reference.hidden(view.args, view.kwargs, view.autocast)
                full = view.positions.predecessors(hidden)
            behind = self._states(post, view.autocast) if self._reads_post else full[:0]
            return self._read(full, behind, view.host_positions.index)

    def of_documents(
        self, documents: Sequence[Document], call: Callable[[dict[str, Any]], Tensor]
    ) -> list[Aligned]:
        """Of each document, on the host; to be called within a session.

        Args:
            documents: One or more.
            call: The aligned model: inputs [B, T] -> final hidden states [B, T, d].
        """
        rows = [full_context(document) for document in documents]
        post = [] if self.header is None else [r for d in documents for r in self._post(d)]
        index = torch.from_numpy(np.concatenate([document.index for document in documents]))
        full = self.states_of(rows, call)
        behind = self.states_of(post, call) if post else full[:0]
        found = self._read(full, behind, index)
        counts = [len(document.columns) for document in documents]
        parts = [
            [None] * len(counts) if part is None else part.cpu().split(counts)
            for part in (found.values, found.log_rest, found.post)
        ]
        return [Aligned(*part) for part in zip(*parts, strict=True)]

    @property
    def _reads_post(self) -> bool:
        """The same on every rank, whatever its documents."""
        return self.header is not None and self.end > 0

    @property
    def _flat(self) -> bool:
        config = getattr(self.reference.head.decoder, "config", None)
        return "flash" in str(getattr(config, "_attn_implementation", ""))

    def _can_cut(self, view: View) -> bool:
        """Whether the documents alone make up the forward pass, and reading less of them is worth it."""
        known = all(name in _CUT or not torch.is_tensor(value) for name, value in view.kwargs.items())
        return known and len(view.args) < 2 and (self.first_n or (self._flat and self.header is not None))

    def _post(self, document: Document) -> list[Row]:
        assert self.header is not None
        return prompt_free(document, self.header, self.end)

    def _states(self, rows: Sequence[Row], autocast: AbstractContextManager[Any]) -> Tensor:
        """[N, d] of the places wanted; a rank that wants none joins in the pass of those that do."""

        def call(inputs: dict[str, Any]) -> Tensor:
            return self.reference.hidden((), inputs, autocast)

        if not rows:
            return self.states_of([full_context(SOMETHING)], call)[:0]
        return self.states_of(rows, call)

    def states_of(self, rows: Sequence[Row], call: Callable[[dict[str, Any]], Tensor]) -> Tensor:
        """Final hidden states [N, d] at the places wanted, row by row.

        Args:
            rows: One or more.
            call: A model: inputs [B, T] -> final hidden states [B, T, d].
        """
        batch = row_batch(rows, self.ids.device, flat=self._flat)
        return call(batch.inputs)[batch.row, batch.column]

    def _read(self, full: Tensor, behind: Tensor, index: Tensor) -> Aligned:
        """From final hidden states at all positions, and without the prompt at those whose gate is open."""
        head, project = self.reference.head, self.reference.project
        if self.header is None:
            unused = torch.zeros(full.shape[0], dtype=torch.long, device=full.device)
            read = head.readout(full, self.ids, unused, chunk_size=self.chunk_size, project=project)
            return Aligned(read.logprobs, log_rest=read.log_rest)
        values = self.reference.safety_logits(full, self.ids, self.chunk_size)
        post = values.clone()
        opened = torch.nonzero(index < self.end)[:, 0]  # on the host
        if len(opened):
            logits = self.reference.safety_logits(behind, self.ids, self.chunk_size)
            post = post.index_copy(0, opened.to(post.device, non_blocking=True), logits)
        return Aligned(values, post=post)
