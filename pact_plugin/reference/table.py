"""The table: what the aligned model predicts for each document, on disk (spec/PACT.md, clauses C7.4 to C7.7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from pact_plugin.data.documents import Document
from pact_plugin.errors import StoreError
from pact_plugin.model.transfer import to_device
from pact_plugin.reference.columns import Aligned, Columns
from pact_plugin.reference.header import Header
from pact_plugin.reference.shard_writer import Writer, take_over
from pact_plugin.reference.shards import INDEXED, RECORD, Shards

HALF = np.dtype("<f2")
_MOST = float(np.finfo(HALF).max)


class Table:
    """Columns of documents, keyed by content, in a folder: `header.json`, and a file of each rank that has filled it.

    Args:
        folder: It need not exist.
        header: What it must belong to.
        columns: What is stored of each document, in order.

    Raises:
        StoreError: It belongs to something else, or cannot be read.
    """

    def __init__(self, folder: str | Path, header: Header, columns: Sequence[Columns]) -> None:
        self.folder, self.header, self.columns = Path(folder), header, tuple(columns)
        self._widths, self._shards = [one.width for one in columns], Shards(self.folder)
        self.refresh()

    def refresh(self) -> None:
        """Read the table anew, with what other ranks have written since.

        Raises:
            StoreError: It belongs to something else, or cannot be read.
        """
        self.header.check(self.folder)
        self._shards.refresh()

    def create(self) -> None:
        """Write the header, and take over what an interrupted run has committed; by one rank only.

        Raises:
            StoreError: Another run is filling it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        take_over(self.folder)
        self.header.write(self.folder)

    def writer(self, rank: int) -> Writer:
        """A rank's file, to `put` what `encoded` gives; to be used in a `with` statement."""
        return Writer(self.folder, rank)

    def encoded(self, documents: Iterable[tuple[Document, Aligned]]) -> list[tuple[bytes, bytes]]:
        """Documents with their columns, given on the host, as little-endian float16 (clause C7.6).

        Of the probe's log odds only the sign is read: beyond float16's range they become the largest there.
        """
        return [
            (document.key, b"".join(_stored(one, aligned[one]) for one in self.columns))
            for document, aligned in documents
        ]

    def lacks(self, documents: Sequence[Document]) -> list[Document]:
        """The documents that are not there."""
        found = self._shards.get_many([document.key for document in documents])
        return [document for document, value in zip(documents, found, strict=True) if value is None]

    def fetch(self, documents: Sequence[Document], device: torch.device) -> Aligned | None:
        """The columns at the positions of documents; None where the table lacks one of them.

        The host does not wait for the device.

        Raises:
            StoreError: What is stored of a document has not its length.
        """
        rows = []
        stored = self._shards.get_many([document.key for document in documents])
        for document, value in zip(documents, stored, strict=True):
            if value is None:
                return None
            rows.append(self._split(document, value))
        aligned = {}
        for number, asked in enumerate(self.columns):
            parts = [row[number] for row in rows]
            values = np.concatenate(parts) if parts else np.zeros((0, asked.width), HALF)
            numbers = torch.from_numpy(values)
            aligned[asked] = (numbers if asked.on_host else to_device(numbers, device)).float()
        return aligned

    def _split(self, document: Document, value: memoryview) -> list[np.ndarray]:
        """The columns of a document, each [positions, width]."""
        counts = [document.count(asked.first) for asked in self.columns]
        sizes = [count * width for count, width in zip(counts, self._widths, strict=True)]
        numbers = np.frombuffer(value, HALF)
        if len(numbers) != sum(sizes):
            raise StoreError(
                f"it is damaged (a document of {len(document.index)} positions has {len(numbers)} numbers)",
                key="advanced.store",
                value=str(self.folder),
                remedy="Delete the folder.",
            )
        ends = np.cumsum(sizes)
        return [
            part.reshape(count, width)
            for part, count, width in zip(np.split(numbers, ends[:-1]), counts, self._widths, strict=True)
        ]

    @property
    def documents(self) -> int:
        """Number stored; one that two ranks have met counts twice."""
        return self._shards.documents

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self._shards.bytes

    def bytes_of(self, document: Document) -> int:
        """What a document takes on disk."""
        counts = [document.count(asked.first) for asked in self.columns]
        numbers = sum(count * width for count, width in zip(counts, self._widths, strict=True))
        return RECORD.size + INDEXED + HALF.itemsize * numbers


def _stored(column: Columns, values: torch.Tensor) -> bytes:
    bounded = values.clamp(-_MOST, _MOST) if column.kind == "linear" else values
    return bounded.half().numpy().astype(HALF).tobytes()
