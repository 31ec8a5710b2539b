"""The documents of a batch: what the store knows them by, and what a pass over one has to read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pact_plugin.data.positions import IGNORE_INDEX, ResponsePositions
from pact_plugin.errors import StoreError
from pact_plugin.model.transfer import HostCopy, to_device

_COPIED = ("labels", "input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens")
_SAID = {*_COPIED, "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "num_items_in_batch", "length"}
"""Keys of a batch that hold only token ids, labels and boundaries."""


class HostBatch(HostCopy):
    """Ids, labels and boundaries of a batch on the host.

    Args:
        batch: A trainer's batch. Made before the forward pass is launched, the copies are there long before it ends.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self.labels = batch.get("labels")
        super().__init__({key: batch[key] for key in _COPIED if torch.is_tensor(batch.get(key))})


@dataclass(frozen=True, eq=False)
class Document:
    """One document of a batch, up to its last response position."""

    key: bytes
    """Digest of its content (clause C7.4)."""
    tokens: Int[np.ndarray, " n"]
    columns: Int[np.ndarray, " m"]
    """Its response positions, as places in `tokens`."""
    index: Int[np.ndarray, " m"]
    """t of each."""

    def count(self, first: int | None) -> int:
        """Number of its positions with t < `first`. None: all of them."""
        return len(self.index) if first is None else int((self.index < first).sum())


def documents_of(host: Mapping[str, Tensor], positions: ResponsePositions) -> list[Document]:
    """The documents that have response positions, in the order of the batch.

    Their positions, one after another, are `positions`.

    Args:
        host: `input_ids` and `labels` [B, T] on the host.
        positions: Its response positions, on the host.
    """
    ids, labels = host["input_ids"].numpy().ravel(), host["labels"].numpy().ravel()
    starts = positions.starts.numpy().ravel()
    begins, document = np.flatnonzero(starts), np.cumsum(starts) - 1
    flat = positions.row.numpy() * host["labels"].shape[1] + positions.column.numpy()
    index, owner = positions.index.numpy(), document[flat]
    content = (ids.astype(np.int64) << 1) | (labels != IGNORE_INDEX)
    bounds = [0, *(np.flatnonzero(np.diff(owner)) + 1), len(flat)] if len(flat) else []
    documents = []
    for first, last in pairwise(bounds):
        begin, end = begins[owner[first]], flat[last - 1] + 1
        key = hashlib.blake2b(content[begin:end].astype("<i8").tobytes(), digest_size=16).digest()
        documents.append(Document(key, ids[begin:end], flat[first:last] - begin, index[first:last]))
    return documents


PLACEHOLDER = Document(b"", np.zeros(2, np.int64), np.ones(1, np.int64), np.zeros(1, np.int64))
"""A placeholder. Under sharding every rank joins each forward pass; a rank without documents reads this."""


def require_text(batch: Mapping[str, Any]) -> None:
    """Refuse a batch whose documents are more than their token ids, as with images.

    Raises:
        StoreError: Names the key of the batch.
    """
    # Unsloth's lengths of documents say no more than the positions beside them.
    said = _SAID | ({"packed_seq_lengths"} if "position_ids" in batch else set())
    for key, value in batch.items():
        if key not in said and torch.is_tensor(value) and value.ndim and bool((value != 0).any()):
            raise StoreError(
                "documents are stored by their token ids alone, and this batch holds more",
                key=key,
                remedy="Leave the table away: remove `advanced.store`, and do not call `fill`.",
            )
    if not torch.is_tensor(batch.get("input_ids")):
        raise StoreError("the batch has no token ids", key="input_ids", remedy="Pass the model's inputs.")


@dataclass(frozen=True, eq=False)
class Row:
    """A sequence to read, and the places in it whose hidden states are wanted."""

    tokens: Int[np.ndarray, " n"]
    columns: Int[np.ndarray, " m"]


def full_context(document: Document) -> Row:
    """A document up to the last place that predicts a response token."""
    return Row(document.tokens[: document.columns[-1]], document.columns - 1)


def behind(document: Document, header: Sequence[int], end: int | None) -> list[Row]:
    """Every response by itself behind a header in place of its prompt, up to t = `end`; None for all of it."""
    columns, index = document.columns, document.index
    later = (np.diff(columns) != 1) | (np.diff(index) != 1)
    rows = []
    for part in np.split(np.arange(len(columns)), np.flatnonzero(later) + 1):
        inside = index[part] if end is None else index[part][index[part] < end]
        if len(inside):
            first = columns[part[0]] - index[part[0]]
            tokens = np.concatenate([np.asarray(header), document.tokens[first : first + inside[-1]]])
            rows.append(Row(tokens, inside + len(header) - 1))
    return rows


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Rows as one batch."""

    inputs: dict[str, Any]
    """For the model or its decoder."""
    row: Int[Tensor, " N"]
    column: Int[Tensor, " N"]
    """Where the hidden states wanted lie, row by row."""


def row_batch(rows: Sequence[Row], device: torch.device, *, flat: bool) -> RowBatch:
    """Rows padded on the right, or, where the attention keeps documents apart, one after another without padding."""
    lengths = [len(row.tokens) for row in rows]
    counts = [len(row.columns) for row in rows]
    columns = np.concatenate([row.columns for row in rows])
    bounds: dict[str, Any] = {}
    if flat:
        ids = np.concatenate([row.tokens for row in rows])[None]
        extra = {"position_ids": np.concatenate([np.arange(length) for length in lengths])[None]}
        ends = to_device(torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), device)
        # Without them transformers looks for the boundaries in every layer, and the host waits each time.
        bounds = {f"cu_seq_lens_{side}": ends for side in "qk"} | {
            f"max_length_{side}": max(lengths) for side in "qk"
        }
        where, columns = np.zeros_like(columns), columns + np.repeat(np.cumsum([0, *lengths[:-1]]), counts)
    else:
        real = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
        ids = np.zeros(real.shape, dtype=np.int64)
        ids[real] = np.concatenate([row.tokens for row in rows])
        extra = {"attention_mask": real.astype(np.int64)}
        where = np.repeat(np.arange(len(rows)), counts)
    arrays = {"input_ids": ids.astype(np.int64), **extra}
    inputs: dict[str, Any] = {
        name: to_device(torch.from_numpy(a), device) for name, a in arrays.items()
    } | bounds
    place = to_device(torch.from_numpy(np.stack([where, columns]).astype(np.int64)), device)
    return RowBatch(inputs | {"use_cache": False}, place[0], place[1])
