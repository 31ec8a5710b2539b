"""A table of predictions at few tokens, and documents to look up in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pact_plugin.data.documents import Document
from pact_plugin.reference.columns import Aligned, Columns
from pact_plugin.reference.header import Header
from pact_plugin.reference.table import Table

CPU = torch.device("cpu")
IDS = (3, 4, 5, 9)
HELD = (Columns("logprobs", IDS), Columns("log_rest", IDS))


def table(folder: Path, columns: tuple[Columns, ...] = HELD, **changes: str) -> Table:
    named = {"model": "m", "tokenizer": "t"} | changes
    return Table(folder, Header.of(columns=columns, **named), columns)


def document(positions: int, number: int = 0, index: list[int] | None = None) -> Document:
    columns = np.arange(1, positions + 1)
    where = columns - 1 if index is None else np.array(index)
    return Document(number.to_bytes(16, "little"), np.zeros(positions + 1, np.int64), columns, where)


def stored(folder: Path, content: dict[Columns, torch.Tensor], one: Document) -> Aligned:
    """What comes back of one document's predictions."""
    filled = table(folder, tuple(content))
    filled.create()
    with filled.writer(0) as writer:
        writer.put(filled.encoded([(one, content)]))
    filled.refresh()
    found = filled.fetch([one], CPU)
    assert found is not None
    return found
