"""Responses as wholes: which tokens each has, and which response a position belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pact_plugin.data.positions import IGNORE_INDEX, ResponsePositions, positions_of

ENDING = 4
"""Last tokens before answers that are compared, at most."""


@dataclass(frozen=True, eq=False)
class Responses:
    """The R responses of a batch whose first token (t = 0) is a response position; on the host.

    Args:
        numbers: Which responses of the batch they are, ascending.
        row: Row of each one's first token.
        column: Column of the same.
        labels: Of the batch, with -100 also where another document starts.
        starts: Where documents start.
    """

    numbers: Int[np.ndarray, " R"]
    row: Int[np.ndarray, " R"]
    column: Int[np.ndarray, " R"]
    labels: Int[np.ndarray, "B T"]
    starts: Bool[np.ndarray, "B T"]

    @classmethod
    def of(cls, labels: Int[Tensor, "B T"], positions: ResponsePositions) -> Responses:
        """From a batch's labels and its response positions, both on the host."""
        first = positions.index == 0
        return cls(
            numbers=positions.response[first].numpy(),
            row=positions.row[first].numpy(),
            column=positions.column[first].numpy(),
            labels=labels.masked_fill(positions.starts, IGNORE_INDEX).numpy(),
            starts=positions.starts.numpy(),
        )

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def begins(self) -> Int[np.ndarray, " R"]:
        """Column where the document of each begins."""
        columns = np.where(self.starts, np.arange(self.starts.shape[1]), 0)
        return np.maximum.accumulate(columns, axis=1)[self.row, self.column]

    @property
    def asked(self) -> Bool[Tensor, " R"]:
        """Whether a prompt stands before each: more of its document than one token, such as <s>."""
        return torch.from_numpy(self.column - self.begins > 1)

    def tokens(self, number: int, limit: int) -> list[int]:
        """The first tokens of a response, `limit` at most.

        Args:
            number: From 0 to R - 1.
            limit: 1 or more.
        """
        start = self.column[number]
        run = self.labels[self.row[number], start : start + limit]
        ends = np.flatnonzero(run == IGNORE_INDEX)
        return run[: ends[0] if len(ends) else len(run)].tolist()

    def before(self, number: int, ids: Int[Tensor, "B T"], limit: int) -> tuple[int, ...]:
        """The last tokens before a response; empty where it is not `asked`.

        Args:
            number: From 0 to R - 1.
            ids: Of the batch, on the host.
            limit: At most this many tokens.
        """
        begin, end = int(self.begins[number]), int(self.column[number])
        if not self.asked[number]:
            return ()
        return tuple(ids[self.row[number], max(begin, end - limit) : end].tolist())

    def owner(self, positions: ResponsePositions) -> Int[Tensor, " M"]:
        """Which of the R responses each position is part of, from 0; -1 for those of other responses."""
        response = positions.response.numpy()
        if not len(self):
            return torch.full((len(response),), -1)
        place = np.searchsorted(self.numbers, response).clip(max=len(self) - 1)
        return torch.from_numpy(np.where(self.numbers[place] == response, place, -1))


def endings_of(batch: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    """The last tokens before the answers of a batch on the host, each once; `ENDING` at most."""
    responses = Responses.of(batch["labels"], positions_of(batch))
    found = (responses.before(number, batch["input_ids"], ENDING) for number in range(len(responses)))
    return tuple(dict.fromkeys(one for one in found if one))
