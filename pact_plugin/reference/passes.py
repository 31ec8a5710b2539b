"""Passes of the aligned model over a batch or over documents, for the columns that terms ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pact_plugin.data.documents import SOMETHING, Document, Row, behind, full_context, row_batch
from pact_plugin.data.view import View
from pact_plugin.errors import NonFiniteError
from pact_plugin.reference.columns import Aligned, Columns, furthest, invalid, read
from pact_plugin.reference.source import Source

Caller = Callable[[dict[str, Any]], Tensor]
"""A model: inputs [B, T] -> final hidden states [B, T, d]."""

_CUT = {"input_ids", "attention_mask", "position_ids", "use_cache", "past_key_values", "inputs_embeds"} | {
    *(f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"),
    "num_items_in_batch",  # the plain Trainer's, for the loss
}
"""Arguments of a decoder that say nothing but token ids and boundaries."""


class Passes:
    """Computes columns.

    Args:
        source: The aligned model.
        columns: What is asked of it, at least one.
        chunk_size: Positions projected on the vocabulary at a time.
    """

    def __init__(self, source: Source, columns: Sequence[Columns], chunk_size: int) -> None:
        self.source, self.columns, self._chunk_size = source, tuple(columns), chunk_size
        self.first, self._flat = furthest(columns), source.head.keeps_documents_apart
        self._contexts = {
            header: tuple(one for one in columns if one.behind == header)
            for header in dict.fromkeys(one.behind for one in columns)
        }

    def of_view(self, view: View) -> Aligned:
        """At the positions of a forward pass, with the source in the model's place."""
        index = view.host_positions.among(self.first).index.numpy()

        def call(inputs: dict[str, Any]) -> Tensor:
            return self.source.hidden((), inputs, view.autocast)

        with self.source.session(view.hidden.device):
            if self._can_cut(view):
                return self._read(self._states(view.documents(self.first), call), index)
            states: dict[tuple[int, ...] | None, Tensor] = {}
            if None in self._contexts:
                hidden = self.source.hidden(view.args, view.kwargs, view.autocast)
                states[None] = view.positions.predecessors(hidden)[view.within(self.first)]
            others = [header for header in self._contexts if header is not None]
            return self._read(states | self._states(view.documents(self.first), call, others), index)

    def of_documents(self, documents: Sequence[Document], call: Caller) -> list[Aligned]:
        """Of each document, on the host; to be called within a session of the source.

        Args:
            documents: One or more.
            call: The aligned model.

        Raises:
            NonFiniteError: It predicts NaN.
        """
        index = np.concatenate([document.index for document in documents])
        found = {
            one: values.cpu() for one, values in self._read(self._states(documents, call), index).items()
        }
        if invalid(found):
            raise NonFiniteError(
                "NaN or infinity in the reference",
                key="reference",
                remedy="Check the aligned model's weights and precision.",
            )
        parts = {
            one: values.split([document.count(one.first) for document in documents])
            for one, values in found.items()
        }
        return [{one: split[i] for one, split in parts.items()} for i in range(len(documents))]

    def _can_cut(self, view: View) -> bool:
        """Whether the documents alone make up the forward pass, and reading less of them is worth it."""
        known = all(name in _CUT or not torch.is_tensor(value) for name, value in view.kwargs.items())
        return (
            known
            and len(view.args) < 2
            and (self.first is not None or (self._flat and len(self._contexts) > 1))
        )

    def _rows(self, document: Document, header: tuple[int, ...] | None) -> list[Row]:
        if header is None:
            return [full_context(document)]
        return behind(document, header, furthest(self._contexts[header]))

    def _states(
        self, documents: Sequence[Document], call: Caller, headers: Sequence[Any] | None = None
    ) -> dict[tuple[int, ...] | None, Tensor]:
        """[N, d] of each context, or of some: in one pass where rows need no padding, else in one for each.

        A rank that wants none joins in the pass of those that do.
        """
        wanted = {
            header: [row for document in documents for row in self._rows(document, header)]
            for header in (self._contexts if headers is None else headers)
        }
        if not self._flat:
            return {header: self._pass(rows, call) for header, rows in wanted.items()}
        together = self._pass([row for rows in wanted.values() for row in rows], call)
        counts = [sum(len(row.columns) for row in rows) for rows in wanted.values()]
        return dict(zip(wanted, together.split(counts), strict=True))

    def _pass(self, rows: Sequence[Row], call: Caller) -> Tensor:
        if not rows:
            return states_of([full_context(SOMETHING)], self._device, call, flat=self._flat)[:0]
        return states_of(rows, self._device, call, flat=self._flat)

    @property
    def _device(self) -> torch.device:
        return self.source.head.device

    def _read(self, states: dict[tuple[int, ...] | None, Tensor], index: np.ndarray) -> Aligned:
        """From hidden states at all positions that each context is asked at."""
        found: dict[Columns, Tensor] = {}
        for header, columns in self._contexts.items():
            end = self.first if header is None else furthest(columns)
            asked = index if end is None else index[index < end]
            read_at = read(self.source, states[header], columns, self._chunk_size)
            for one, values in read_at.items():
                within = np.flatnonzero(asked < one.first) if one.first is not None else None
                if within is not None and len(within) < len(asked):
                    values = values[torch.from_numpy(within).to(values.device)]
                found[one] = values
        return found


def states_of(rows: Sequence[Row], device: torch.device, call: Caller, *, flat: bool) -> Tensor:
    """Final hidden states [N, d] at the places wanted, row by row.

    Args:
        rows: One or more.
        device: Of the model.
        call: The model.
        flat: Whether the attention keeps documents of one row apart, so that none is padded.
    """
    batch = row_batch(rows, device, flat=flat)
    return call(batch.inputs)[batch.row, batch.column]
