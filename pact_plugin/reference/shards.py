"""The files of a store: LMDB, one for each rank that has filled it (spec/PACT.md, clause C7.6)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import torch
from filelock import FileLock

from pact_plugin.data.documents import Document
from pact_plugin.errors import StoreError
from pact_plugin.reference.header import Header
from pact_plugin.reference.passes import Aligned

HALF = np.dtype("<f2")
_MAP_SIZE = 2**28
_open: WeakValueDictionary[str, lmdb.Environment] = WeakValueDictionary()
"""LMDB refuses to open a file twice in one process."""


class Writer:
    """One rank's file of a store; to be used in a `with` statement.

    Args:
        folder: Of the store, which must be there.
        header: Its header.
        rank: Of this process.
    """

    def __init__(self, folder: Path, header: Header, rank: int) -> None:
        self._part = folder / f"{rank:05d}-{uuid.uuid4().hex[:8]}.part"
        self._header = header
        self._lock: FileLock | None = None
        self._env: lmdb.Environment | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._env is not None and self._lock is not None:
            self._env.close()
            finish(self._part, self._lock)

    def put(self, documents: Iterable[tuple[Document, Aligned]]) -> None:
        """Store documents, all or none of them."""
        if self._env is None:
            self._lock = FileLock(f"{self._part}.lock")
            self._lock.acquire(timeout=0)
            self._env = lmdb.open(str(self._part), subdir=False, lock=False, map_size=_MAP_SIZE)
        items = [(document.key, encoded(document, aligned, self._header)) for document, aligned in documents]
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])


def encoded(document: Document, aligned: Aligned, header: Header) -> bytes:
    """A document's numbers, given on the host, as little-endian float16 (clause C7.6).

    Logits are moved so that the largest of each position is 0, where float16 is finest; no divergence sees it.
    """
    values = aligned.values
    if aligned.log_rest is not None:
        rows, post = torch.cat([values, aligned.log_rest[:, None]], dim=1), values[:0]
    else:
        assert aligned.post is not None
        opened = torch.from_numpy(document.index < header.end)
        rows, post = (x - x.amax(1, keepdim=True) for x in (values, aligned.post[opened]))
    return b"".join(x.half().numpy().astype(HALF).tobytes() for x in (rows, post))


def finish(part: Path, lock: FileLock) -> None:
    """Give a file its last name, or remove it if nothing was committed."""
    try:
        lmdb.open(str(part), subdir=False, lock=False, readonly=True).close()
        os.replace(part, part.with_suffix(".lmdb"))
    except lmdb.Error:
        part.unlink(missing_ok=True)
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def opened(path: Path) -> lmdb.Environment:
    """A finished file, which nobody writes any more: no lock is needed, also on a read-only file system."""
    name = str(path.resolve())
    env = _open.get(name)
    if env is None:
        try:
            env = lmdb.open(name, subdir=False, lock=False, readonly=True, readahead=False)
        except lmdb.Error as error:
            raise StoreError(
                f"a file of it is damaged ({error})", key="store", value=name, remedy="Delete that file."
            ) from error
        _open[name] = env
    return env
