"""The stored reference: what the aligned model predicts for each document (spec/PACT.md, clauses C7.4 to C7.7).

A folder with `header.json` and LMDB files. Each rank writes a file of its own, which is complete at every moment as far
as it was committed, and is never written again once it is closed; every rank reads them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from filelock import FileLock, Timeout

from pact_plugin.data.documents import Document, to_device
from pact_plugin.errors import StoreError
from pact_plugin.reference.header import Header
from pact_plugin.reference.passes import Aligned
from pact_plugin.reference.shards import HALF, finish, opened


class Store:
    """What is stored of one model, in one folder.

    Args:
        folder: It need not exist.
        header: What it must belong to.

    Raises:
        StoreError: It belongs to something else, or cannot be read.
    """

    def __init__(self, folder: str | Path, header: Header) -> None:
        self.folder, self.header = Path(folder), header
        self._shards: list[lmdb.Environment] = []
        self.refresh()

    def refresh(self) -> None:
        """Read what there is now, also what other ranks have written.

        Raises:
            StoreError: It belongs to something else, or cannot be read.
        """
        self.header.check(self.folder)
        self._shards = [opened(path) for path in sorted(self.folder.glob("*.lmdb"))]

    def create(self) -> None:
        """Write the header, and take over what an interrupted run has committed; by one rank only.

        Raises:
            StoreError: Another run is filling it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("*.part"):
            lock = FileLock(f"{part}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise StoreError(
                    "another run is filling it",
                    key="store",
                    value=str(self.folder),
                    remedy="Wait until it has, or name another folder with `store`.",
                ) from error
            finish(part, lock)
        self.header.write(self.folder)

    def __contains__(self, key: bytes) -> bool:
        return any(_has(shard, key) for shard in self._shards)

    def fetch(self, documents: Sequence[Document], device: torch.device) -> Aligned | list[int]:
        """The predictions at all positions of the documents, or which of the documents are missing.

        The host does not wait for the device.

        Raises:
            StoreError: What is stored of a document has not its length.
        """
        counts = [len(document.columns) for document in documents]
        inside = [document.index < self.header.end for document in documents]
        rows = np.empty((sum(counts), self.header.width), HALF)
        post = np.empty((sum(int(part.sum()) for part in inside), self.header.count), HALF)
        missing, at, at_post = [], 0, 0
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(shard.begin(buffers=True)) for shard in self._shards]
            for number, (document, count, part) in enumerate(zip(documents, counts, inside, strict=True)):
                value = next((v for v in (r.get(document.key) for r in readers) if v is not None), None)
                if value is None:
                    missing.append(number)
                    continue
                found = np.frombuffer(value, HALF)
                behind, size = int(part.sum()), count * self.header.width
                if len(found) != size + behind * self.header.count:
                    raise self._damaged(f"a document of {count} positions has {len(found)} numbers")
                rows[at : at + count] = found[:size].reshape(count, -1)
                post[at_post : at_post + behind] = found[size:].reshape(behind, self.header.count)
                at, at_post = at + count, at_post + behind
        if missing:
            return missing
        return self._on(device, rows, post, np.flatnonzero(np.concatenate([*inside, np.zeros(0, bool)])))

    def _on(self, device: torch.device, rows: Any, post: Any, opened: Any) -> Aligned:
        values = to_device(torch.from_numpy(rows), device).float()
        if self.header.objective == "confidence":
            return Aligned(values[:, :-1], log_rest=values[:, -1])
        where = to_device(torch.from_numpy(opened), device)
        logits = to_device(torch.from_numpy(post), device).float()
        return Aligned(values, post=values.index_copy(0, where, logits))

    @property
    def documents(self) -> int:
        """Number stored; one that two ranks have met counts twice."""
        return sum(shard.stat()["entries"] for shard in self._shards)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.lmdb"))

    def _damaged(self, how: str) -> StoreError:
        return StoreError(
            f"it is damaged ({how})", key="store", value=str(self.folder), remedy="Delete the folder."
        )


def _has(shard: lmdb.Environment, key: bytes) -> bool:
    with shard.begin() as transaction:
        return transaction.cursor().set_key(key)
