"""The stored reference: what the aligned model predicts for each document (spec/PACT.md, clauses C7.4 to C7.7).

A folder with `header.json` and LMDB files. Each rank writes a file of its own, which is complete at every moment as far
as it was committed, and is never written again once it is closed; every rank reads them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import torch
from filelock import FileLock, Timeout

from pact_plugin.aligned import Aligned
from pact_plugin.documents import Document, to_device
from pact_plugin.errors import StoreError

HEADER_FILE = "header.json"
_HALF = np.dtype("<f2")
_MAP_SIZE = 2**28
_REMEDY = "Delete the folder, or name another with `store`."
_WHAT = {
    "model": "predictions of another model, or of this one after training",
    "tokenizer": "another tokenizer's documents",
    "tokens": "predictions of other safety tokens",
    "objective": "another objective's predictions",
    "settings": "predictions for other `published` settings",
    "first_n": "predictions for another `first_n`",
}
_open: WeakValueDictionary[str, lmdb.Environment] = WeakValueDictionary()
"""LMDB refuses to open a file twice in one process."""


@dataclass(frozen=True)
class Header:
    """What a store belongs to (clause C7.5).

    Args:
        model: Fingerprint of the aligned model.
        tokenizer: Fingerprint of its tokenizer.
        tokens: Digest of the safety tokens stored.
        count: K, their number.
        objective: `confidence` or `published`.
        settings: Those of the objective that the stored values depend on.
        first_n: Tokens of each response that are stored; None for all.
    """

    model: str
    tokenizer: str
    tokens: str
    count: int
    objective: str
    settings: dict[str, Any]
    first_n: int | None
    dtype: str = "float16"
    format: str = "pact-store"
    version: int = 1

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name it."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def width(self) -> int:
        """Values per position: K log-probabilities and log r, or K logits."""
        return self.count + (self.objective == "confidence")

    @property
    def end(self) -> int:
        """The first t without prompt-free logits."""
        return int(self.settings.get("gate_end", 0))


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
        file = self.folder / HEADER_FILE
        if file.is_file():
            self._check_header(file)
        self._shards = [_opened(path) for path in sorted(self.folder.glob("*.lmdb"))]

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
            _finish(part, lock)
        if not (self.folder / HEADER_FILE).is_file():
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=HEADER_FILE)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(self.header), file, indent=2, sort_keys=True)
            os.replace(temporary, self.folder / HEADER_FILE)

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
        rows = np.empty((sum(counts), self.header.width), _HALF)
        post = np.empty((sum(int(part.sum()) for part in inside), self.header.count), _HALF)
        missing, at, at_post = [], 0, 0
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(shard.begin(buffers=True)) for shard in self._shards]
            for number, (document, count, part) in enumerate(zip(documents, counts, inside, strict=True)):
                value = next((v for v in (r.get(document.key) for r in readers) if v is not None), None)
                if value is None:
                    missing.append(number)
                    continue
                found = np.frombuffer(value, _HALF)
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

    def _check_header(self, file: Path) -> None:
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
            assert isinstance(theirs, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise self._damaged(f"{HEADER_FILE} cannot be read") from error
        ours = asdict(self.header)
        if theirs == ours:
            return
        what = [text for name, text in _WHAT.items() if theirs.get(name) != ours[name]]
        raise StoreError(
            f"it holds {' and '.join(what) or 'another version of the format'}",
            key="store",
            value=str(self.folder),
            remedy=_REMEDY,
        )

    def _damaged(self, how: str) -> StoreError:
        return StoreError(
            f"it is damaged ({how})", key="store", value=str(self.folder), remedy="Delete the folder."
        )


class Writer:
    """One rank's file of a store; to be used in a `with` statement.

    Args:
        store: The store, created.
        rank: Of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._part = store.folder / f"{rank:05d}-{uuid.uuid4().hex[:8]}.part"
        self._header = store.header
        self._lock: FileLock | None = None
        self._env: lmdb.Environment | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._env is not None and self._lock is not None:
            self._env.close()
            _finish(self._part, self._lock)

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
    return b"".join(x.half().numpy().astype(_HALF).tobytes() for x in (rows, post))


def _finish(part: Path, lock: FileLock) -> None:
    """Give a file its last name, or remove it if nothing was committed."""
    try:
        lmdb.open(str(part), subdir=False, lock=False, readonly=True).close()
        os.replace(part, part.with_suffix(".lmdb"))
    except lmdb.Error:
        part.unlink(missing_ok=True)
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _opened(path: Path) -> lmdb.Environment:
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


def _has(shard: lmdb.Environment, key: bytes) -> bool:
    with shard.begin() as transaction:
        return transaction.cursor().set_key(key)
