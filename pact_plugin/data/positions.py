"""Labels and document boundaries -> response positions (clause C5 of spec/PACT.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pact_plugin.errors import ShapeError
from pact_plugin.model.transfer import to_device

IGNORE_INDEX = -100
"""Label of a token that is not trained on."""


@dataclass(frozen=True)
class ResponsePositions:
    """The N response positions of a batch, in row order."""

    row: Int[Tensor, " N"]
    """Row of the batch."""
    column: Int[Tensor, " N"]
    """Column of the label; the position before it predicts it."""
    index: Int[Tensor, " N"]
    """Index t of the token inside its response, from 0."""
    response: Int[Tensor, " N"]
    """Which response of the batch, from 0."""
    trained: Int[Tensor, ""]
    """Labels that a next-token loss counts: all but column 0 and the ignored."""
    starts: Bool[Tensor, "B T"]
    """Where a document starts."""

    def __len__(self) -> int:
        return self.row.shape[0]

    def to(self, device: torch.device) -> ResponsePositions:
        """With the positions on a device, in one copy; `trained` and `starts` stay where they are."""
        if self.row.device == device:
            return self
        packed = torch.stack([self.row, self.column, self.index, self.response])
        row, column, index, response = to_device(packed, device)
        return ResponsePositions(row, column, index, response, self.trained, self.starts)

    def among(self, first: int | None) -> ResponsePositions:
        """Those with t < `first`; None for all. To be called on the host."""
        if first is None or bool((self.index < first).all()):
            return self
        return self.where(self.index < first)

    def where(self, kept: Bool[Tensor, " N"]) -> ResponsePositions:
        """Those of which it is true. To be called on the host."""
        row, column, index, response = (
            part[kept] for part in (self.row, self.column, self.index, self.response)
        )
        return ResponsePositions(row, column, index, response, self.trained, self.starts)

    def predecessors(self, values: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...] at the positions that predict the response tokens."""
        return values[self.row, self.column - 1]

    def own(self, values: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...] at the response tokens themselves."""
        return values[self.row, self.column]


def response_positions(
    labels: Int[Tensor, "B T"],
    *,
    position_ids: Int[Tensor, "B T"] | None = None,
    cu_seq_lens: Int[Tensor, " D"] | None = None,
    attention_mask: Int[Tensor, "B T"] | None = None,
    first: int | None = None,
) -> ResponsePositions:
    """Find the response positions of padded, multi-turn or packed rows.

    A response is one contiguous run of labels other than -100 inside one document. Its first token is no position
    where nothing of its own document comes before it. Vectorised: one host synchronisation per batch, none on the CPU.

    Args:
        labels: Token ids, -100 where ignored.
        position_ids: Documents start where these do not continue their predecessor.
        cu_seq_lens: Cumulative document lengths in tokens, from 0, over all rows, one after another (mostly there is
            only one, of a padding-free batch).
        attention_mask: A document starts behind padding on the left, where it is 0.
        first: Only positions with t < `first` are kept. None: all.

    Raises:
        ShapeError: The shapes do not fit together.
    """
    if labels.ndim != 2:
        raise ShapeError(
            "labels must have shape [batch, sequence]",
            key="labels",
            value=tuple(labels.shape),
            remedy="Pass the labels of a batch.",
        )
    begins = document_starts(
        labels, position_ids=position_ids, cu_seq_lens=cu_seq_lens, attention_mask=attention_mask
    )
    trained = labels != IGNORE_INDEX
    continues = torch.zeros_like(trained)
    continues[:, 1:] = trained[:, 1:] & trained[:, :-1] & ~begins[:, 1:]
    starts = trained & ~continues
    columns = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    index = columns - torch.where(starts, columns, -1).cummax(dim=1).values if labels.numel() else columns
    response = starts.flatten().cumsum(0).view_as(labels) - 1
    chosen = trained & ~begins
    if first is not None:
        chosen &= index < first
    row, column = torch.nonzero(chosen, as_tuple=True)
    return ResponsePositions(
        row=row,
        column=column,
        index=index[row, column],
        response=response[row, column],
        trained=trained_labels(labels),
        starts=begins,
    )


def trained_labels(labels: Int[Tensor, "B T"]) -> Int[Tensor, ""]:
    """How many labels a next-token loss counts: all but column 0 and the ignored."""
    return (labels[:, 1:] != IGNORE_INDEX).sum()


def document_starts(
    labels: Int[Tensor, "B T"],
    *,
    position_ids: Int[Tensor, "B T"] | None = None,
    cu_seq_lens: Int[Tensor, " D"] | None = None,
    attention_mask: Int[Tensor, "B T"] | None = None,
) -> Bool[Tensor, "B T"]:
    """Columns whose predecessor belongs to another document or does not exist."""
    starts = torch.zeros_like(labels, dtype=torch.bool)
    starts[:, :1] = True
    if cu_seq_lens is not None:
        if labels.shape[0] != 1 and int(cu_seq_lens[-1]) != labels.numel():
            raise ShapeError(
                f"cumulative sequence lengths that end at {int(cu_seq_lens[-1])} do not describe all rows",
                key="labels",
                value=tuple(labels.shape),
                remedy="Pass `position_ids` for a batch of several rows.",
            )
        flat = starts.new_zeros(labels.numel() + 1)  # one more, for documents without tokens at the end
        flat[cu_seq_lens[:-1].long().clamp(max=labels.numel())] = True
        starts |= flat[:-1].view_as(starts)
    if position_ids is not None:
        if position_ids.ndim != 2 or position_ids.shape[1] != labels.shape[1]:
            raise ShapeError(
                f"position_ids must have shape {tuple(labels.shape)}",
                key="position_ids",
                value=tuple(position_ids.shape),
                remedy="Pass one position per token.",
            )
        starts[:, 1:] |= position_ids[:, 1:] != position_ids[:, :-1] + 1
    if attention_mask is not None:
        starts[:, 1:] |= (attention_mask[:, 1:] != 0) & (attention_mask[:, :-1] == 0)
    return starts


def positions_of(batch: Mapping[str, Any], first: int | None = None) -> ResponsePositions:
    """`response_positions` of a trainer's batch, from the keys it has.

    Raises:
        ShapeError: The batch has no labels, or labels already shifted for sequence parallelism, or a row has padding
            between its tokens.
    """
    if "shift_labels" in batch:
        raise ShapeError(
            "sequence-parallel batches with shifted labels are not supported",
            key="shift_labels",
            remedy="Turn sequence or context parallelism off.",
        )
    labels, boundaries = _labels(batch), _boundaries(batch)
    _require_no_gap(**boundaries)
    return response_positions(labels, **boundaries, first=first)


def _labels(batch: Mapping[str, Any]) -> Int[Tensor, "B T"]:
    labels: Tensor | None = batch.get("labels")
    if labels is None:
        raise ShapeError("the batch has no labels", key="labels", remedy="Use a data set that yields labels.")
    return labels


def _require_no_gap(
    position_ids: Tensor | None, cu_seq_lens: Tensor | None, attention_mask: Tensor | None
) -> None:
    """Refuse a row with padding between its tokens: what is read of it by itself has none (clause C5.2)."""
    if attention_mask is None or position_ids is not None or cu_seq_lens is not None:
        return
    shown = attention_mask != 0
    if bool(((shown[:, 1:] & ~shown[:, :-1]).sum(1) + shown[:, 0] > 1).any()):
        raise ShapeError(
            "a row has padding between its tokens",
            key="attention_mask",
            remedy="Pad rows at one end, behind prompt and answer together.",
        )


def _boundaries(batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    position_ids = batch.get("position_ids")
    cu_seq_lens = batch.get("cu_seq_lens_q", batch.get("cu_seq_lens"))
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape != batch["labels"].shape:
        mask = None
    # Multimodal positions have several planes; lengths say all that is needed, and one document needs no more.
    if position_ids is not None and position_ids.ndim != 2:
        packed = cu_seq_lens is None and _restarts(position_ids, mask)
        position_ids = position_ids if packed else None
    return {"position_ids": position_ids, "cu_seq_lens": cu_seq_lens, "attention_mask": mask}


def _restarts(planes: Int[Tensor, "P B T"], mask: Int[Tensor, "B T"] | None) -> bool:
    """Whether positions in several planes begin anew behind a token, as in a packed row."""
    first = planes[0]
    again = (first[..., 1:] == 0) & (first[..., :-1] != 0)
    return bool((again if mask is None else again & (mask[:, :-1] != 0)).any())


def nothing_masked(batch: Mapping[str, Any]) -> bool:
    """Whether every token but padding and document starts is trained on, prompts included.

    One masked token id is taken for padding: a collator that masks padding also masks the end of each answer where the
    tokenizer pads with that token.

    Raises:
        ShapeError: The batch has no labels.
    """
    labels, ids, mask = _labels(batch), batch.get("input_ids"), batch.get("attention_mask")
    masked = (labels == IGNORE_INDEX) & ~document_starts(labels, **_boundaries(batch))
    if mask is not None and mask.shape == labels.shape:
        masked &= mask.bool()
    if ids is None or ids.shape != labels.shape:
        return not bool(masked.any())
    return len(ids[masked].unique()) <= 1
