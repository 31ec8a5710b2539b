"""Writing the files of a table, in commits that outlive the process; their format is that of `shards`."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt64

from pact_plugin.errors import StoreError
from pact_plugin.reference.shards import CHECKED, FOOT, MAGIC, RECORD, U8, require_key


class Writer:
    """One rank's file; to be used in a `with` statement.

    Nothing is there before the first `put`. What `put` has returned from outlives the process; a machine that loses
    power may lose the last of it, since only finishing waits for the disk.

    Args:
        folder: Of the table, which must be there.
        rank: Of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._part = folder / f"{rank:05d}-{uuid.uuid4().hex[:8]}.part"
        self._lock: FileLock | None = None
        self._file: io.FileIO | None = None
        self._commits: list[_Commit] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is None:
            return
        try:
            if self._file is not None:
                self._file.close()
            _finish(self._part, self._commits)
        finally:
            _release(self._lock)

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Store keys of 16 bytes with their values, all or none of them. Of a key put twice, the later value is found.

        Raises:
            ValueError: A key has another length.
            StoreError: The file cannot be locked.
            OSError: They cannot be written.
        """
        records = list(items)
        if not records:
            return
        start = _end_of(self._commits)
        parts, end = ([], start) if start else ([MAGIC], len(MAGIC))
        first, places = bytearray(), []
        for left, (key, value) in zip(reversed(range(len(records))), records, strict=True):
            require_key(key)
            head = CHECKED.pack(len(value), left, key)
            parts += (crc32(value, crc32(head)).to_bytes(4, "little"), head, value)
            first += key[:8]
            places.append(end)
            end += RECORD.size + len(value)
        file = self._opened()
        file.seek(start)
        file.truncate()  # of a `put` that failed
        content = memoryview(b"".join(parts))
        while content:  # an unbuffered file may take less at a time
            content = content[file.write(content) :]
        self._commits.append(_commit(first, places, end))

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self._lock = _locked(self._part)
            self._file = self._part.open("wb", buffering=0)
        return self._file


def take_over(folder: Path) -> None:
    """Finish what interrupted processes have left; by one rank only, before any writes.

    Raises:
        StoreError: One of them still writes, or files cannot be locked.
    """
    for part in sorted(folder.glob("[0-9]*.part")):
        lock = _locked(part)
        try:
            if part.exists():
                _finish(part, list(_whole_commits(part)))
        finally:
            _release(lock)


def _locked(part: Path) -> FileLock:
    """The lock of a file, held from now on."""
    lock = FileLock(f"{part}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            "another run is filling it",
            key="advanced.store",
            value=str(part.parent),
            remedy="Wait until it has, or name another folder with `advanced.store`.",
        ) from error
    except (OSError, NotImplementedError) as error:
        raise StoreError(
            f"its files cannot be locked ({error})",
            key="advanced.store",
            value=str(part.parent),
            remedy="Name a folder on another file system with `advanced.store`, such as a local disk.",
        ) from error
    return lock


class _Commit(NamedTuple):
    """Where its records begin, by the first halves of their keys, and where its last one ends."""

    first: UInt64[np.ndarray, " n"]
    places: UInt64[np.ndarray, " n"]
    end: int


def _commit(first: bytearray, places: list[int], end: int) -> _Commit:
    return _Commit(np.frombuffer(first, U8), np.array(places, U8), end)


def _whole_commits(part: Path) -> Iterator[_Commit]:
    """What was committed to a file that has not been finished."""
    size = part.stat().st_size
    with part.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return
        end, first, places = len(MAGIC), bytearray(), list[int]()
        while len(head := file.read(RECORD.size)) == RECORD.size:
            check, length, left, key = RECORD.unpack(head)
            behind = end + RECORD.size + length
            if behind > size or crc32(file.read(length), crc32(head[4:])) != check:
                return
            first += key[:8]
            places.append(end)
            end = behind
            if not left:
                yield _commit(first, places, end)
                first, places = bytearray(), []


def _finish(part: Path, commits: Sequence[_Commit]) -> None:
    """Discard what is behind the last commit, append the index and rename; or remove a file without commits."""
    if not commits:
        part.unlink(missing_ok=True)
        return
    end = _end_of(commits)
    first = np.concatenate([commit.first for commit in commits])
    order = np.argsort(first, kind="stable")  # so that the later of two equal keys stays behind the earlier
    with part.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(bytes(-end % 8))
        file.write(first[order].data)
        file.write(np.concatenate([commit.places for commit in commits])[order].data)
        file.write(FOOT.pack(end, len(first), MAGIC))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, part.with_suffix(".shard"))


def _end_of(commits: Sequence[_Commit]) -> int:
    return commits[-1].end if commits else 0


def _release(lock: FileLock) -> None:
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
