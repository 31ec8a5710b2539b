"""Passes of the aligned model over a batch or over documents, for the columns that terms ask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from pact_plugin.data.documents import PLACEHOLDER, Document, Row, behind, full_context, row_batch
from pact_plugin.data.view import View
from pact_plugin.errors import HiddenStatesNotSeenError, ReferenceModelError
from pact_plugin.model.head import LanguageHead
from pact_plugin.model.ranks import is_distributed
from pact_plugin.model.wrappers import contiguous_input, unwrap
from pact_plugin.reference.columns import Aligned, Columns, furthest, invalid, not_finite, read_columns
from pact_plugin.reference.source import Source

Caller = Callable[[dict[str, Any]], Tensor]
"""A model: inputs [B, T] -> final hidden states [B, T, d]."""

_CUT = {"input_ids", "attention_mask", "position_ids", "use_cache", "past_key_values", "inputs_embeds"} | {
    *(f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"),
    "num_items_in_batch",  # the plain Trainer's, for the loss
}
"""Arguments of a decoder that hold only token ids and boundaries."""


@dataclass(frozen=True)
class Context:
    """What the aligned model reads before it predicts a response, and the columns that are asked there.

    Args:
        header: Tokens that stand in place of the prompt; None for the document as it is.
        columns: At least one.
    """

    header: tuple[int, ...] | None
    columns: tuple[Columns, ...]

    @property
    def first(self) -> int | None:
        """Positions with t below this are read; None for every position of a document."""
        return None if self.header is None else furthest(self.columns)

    def rows(self, document: Document) -> list[Row]:
        """What is read of a document: all of it at once, or each response by itself behind the header."""
        if self.header is None:
            return [full_context(document)]
        return behind(document, self.header, self.first)


class Passes:
    """Runs the aligned model, and computes columns.

    Args:
        source: The aligned model.
        columns: What is asked of it, at least one.
        chunk_size: Positions projected on the vocabulary at a time.
    """

    def __init__(self, source: Source, columns: Sequence[Columns], chunk_size: int) -> None:
        self.source, self.columns, self._chunk_size = source, tuple(columns), chunk_size
        self.first, self._flat = furthest(columns), source.head.keeps_documents_apart
        self._rows = _rows_of(source) if source.kind == "model" else None
        headers = dict.fromkeys(asked.behind for asked in columns)
        self._contexts = [
            Context(header, tuple(asked for asked in columns if asked.behind == header)) for header in headers
        ]

    def of_view(self, view: View) -> Aligned:
        """The columns at the response positions of a forward pass, with the source in the model's place."""
        index = view.host_positions.among(self.first).index

        def call(inputs: dict[str, Any]) -> Tensor:
            return self.source.hidden((), inputs, view.autocast)

        self._require_known([view.host["input_ids"].numpy()])
        with self.source.session(view.hidden.device):
            if self._can_cut(view):
                states = self._states(self._contexts, view.documents(self.first), call)
            else:
                states = []
                for context in self._contexts:
                    if context.header is None:
                        hidden = self.source.hidden(view.args, view.kwargs, view.autocast)
                        states.append(view.positions.predecessors(hidden)[view.within(self.first)])
                    else:
                        states += self._states([context], view.documents(self.first), call)
            aligned = self._read(states, index)
        return {asked: values.cpu() if asked.on_host else values for asked, values in aligned.items()}

    def of_documents(self, documents: Sequence[Document], call: Caller) -> list[Aligned]:
        """The columns of each document, on the host; to be called within a session of the source.

        Args:
            documents: One or more, with positions that the columns are asked at.
            call: The aligned model.

        Raises:
            NonFiniteError: It predicts NaN.
            ReferenceModelError: It has no row for a token.
        """
        self._require_known([document.tokens for document in documents])
        index = torch.from_numpy(np.concatenate([document.index for document in documents]))
        aligned = self._read(self._states(self._contexts, documents, call), index)
        aligned = {asked: values.cpu() for asked, values in aligned.items()}
        if invalid(aligned):
            raise not_finite()
        parts = {
            asked: values.split([document.count(asked.first) for document in documents])
            for asked, values in aligned.items()
        }
        return [{asked: part[i] for asked, part in parts.items()} for i in range(len(documents))]

    def _require_known(self, ids: Sequence[np.ndarray]) -> None:
        """Refuse tokens that another model has no row for, as those that were added to the one in training."""
        if self._rows is None:
            return
        largest = max(int(some.max(initial=0)) for some in ids)
        if largest >= self._rows:
            raise ReferenceModelError(
                f"the data holds token id {largest}, and the aligned model has {self._rows} rows",
                key="reference",
                remedy="Give it the added tokens: save it with resized embeddings, or use `reference: auto`.",
            )

    def _can_cut(self, view: View) -> bool:
        """Whether the documents alone make up the forward pass, and reading less of them is worth it."""
        known = all(name in _CUT or not torch.is_tensor(value) for name, value in view.kwargs.items())
        return (
            known
            and len(view.args) < 2
            and (self.first is not None or (self._flat and len(self._contexts) > 1))
        )

    def _states(
        self, contexts: Sequence[Context], documents: Sequence[Document], call: Caller
    ) -> list[Tensor]:
        """Final hidden states [N, d] of each context, at the N positions that it reads."""
        groups = [[row for document in documents for row in context.rows(document)] for context in contexts]
        return states_of_each(groups, self.source.head.device, call, flat=self._flat)

    def _read(self, states: Sequence[Tensor], index: Int[Tensor, " M"]) -> Aligned:
        """The columns from the hidden states of each context.

        Args:
            states: As `_states` gives them.
            index: t of all M positions, on the host.
        """
        aligned: dict[Columns, Tensor] = {}
        for context, hidden in zip(self._contexts, states, strict=True):
            index_read = select(index, index, context.first)
            numbers = read_columns(self.source, hidden, context.columns, self._chunk_size)
            for asked, values in numbers.items():
                aligned[asked] = select(values, index_read, asked.first)
        return aligned


def _rows_of(source: Source) -> int | None:
    embedding: Any = getattr(source.head.decoder, "get_input_embeddings", lambda: None)()
    rows: int | None = getattr(embedding, "num_embeddings", None)
    return rows


def select(values: Tensor, index: Int[Tensor, " N"], first: int | None) -> Tensor:
    """The values [N, ...] at the positions with t < `first`; None for all. `index` has t of each, on the host."""
    if first is None or bool((index < first).all()):
        return values
    return values[torch.nonzero(index < first)[:, 0].to(values.device)]


def states_of_each(
    groups: Sequence[Sequence[Row]], device: torch.device, call: Caller, *, flat: bool
) -> list[Tensor]:
    """As `states_of`, of several groups of rows: in one pass if rows need no padding, else in one for each."""
    if not flat:
        return [states_of(rows, device, call, flat=False) for rows in groups]
    together = states_of([row for rows in groups for row in rows], device, call, flat=True)
    return list(together.split([sum(len(row.columns) for row in rows) for rows in groups]))


def states_of(rows: Sequence[Row], device: torch.device, call: Caller, *, flat: bool) -> Tensor:
    """Final hidden states [N, d] at the places wanted, row by row.

    Args:
        rows: Without any, the model still runs, as sharded models need every rank.
        device: Of the model.
        call: The model.
        flat: Whether the attention keeps documents of one row apart, so that none is padded.
    """
    batch = row_batch(rows or [full_context(PLACEHOLDER)], device, flat=flat)
    states = call(batch.inputs)[batch.row, batch.column]
    return states if rows else states[:0]


def caller(model: nn.Module, head: LanguageHead) -> Caller:
    """Inputs -> final hidden states, through the whole model, so that its wrappers and its precision are training's.

    The logits of one position are computed beside them; of all, where a model knows no `logits_to_keep`.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    keep = {}
    if "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters:
        keep = {"logits_to_keep": 1}

    def call(inputs: dict[str, Any]) -> Tensor:
        seen: list[Tensor] = []
        handle = head.decoder.register_forward_hook(
            lambda m, a, output: seen.append(output.last_hidden_state)
        )
        try:
            with contiguous_input(head.projection):
                model(**inputs, **keep)
        finally:
            handle.remove()
        if not seen:
            raise HiddenStatesNotSeenError(
                "the model's forward pass did not run its decoder",
                key="model",
                remedy="Pass the model in training.",
            )
        return seen[0]

    return call


def reshard(model: nn.Module) -> None:
    """Put sharded parameters back where a pass without gradients has left whole ones, as FSDP2 does at its root."""
    if not is_distributed():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
