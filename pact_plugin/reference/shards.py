"""The files of a table: values by keys of 16 bytes, one file for each rank that has written (clause C7.6).

A file is a log of records behind MAGIC, written in commits of one or more:

    check u4, length u4, left u4, key 16 bytes, value of `length` bytes

`check` is the CRC-32 of all that follows it in the record, `left` the number of records that follow in the same commit.
So what an interrupted process leaves, `*.part`, is read up to the last commit that is whole. Finishing appends

    zeros up to a multiple of 8, first u8 [n] ascending, place u8 [n], end u8, n u8, MAGIC

and renames the file to `*.shard`, which is never written again: `first` is the first half of a key, `place` where its
record begins, `end` where the log ends. Numbers are little-endian, and `first` is compared as one.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt64

from pact_plugin.errors import StoreError

MAGIC = b"pact-shard 1\r\n\0\0"
_RECORD = struct.Struct("<III16s")
"""Check, length, left and key."""
_CHECKED = struct.Struct("<II16s")
"""What of it is checked."""
_FOOT = struct.Struct("<QQ16s")
_U8 = np.dtype("<u8")


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
            OSError: They cannot be written.
        """
        records = list(items)
        if not records:
            return
        start = _end_of(self._commits)
        parts, end = ([], start) if start else ([MAGIC], len(MAGIC))
        first, places = bytearray(), []
        for left, (key, value) in zip(reversed(range(len(records))), records, strict=True):
            _require_key(key)
            head = _CHECKED.pack(len(value), left, key)
            parts += (crc32(value, crc32(head)).to_bytes(4, "little"), head, value)
            first += key[:8]
            places.append(end)
            end += _RECORD.size + len(value)
        file = self._opened()
        file.seek(start)
        file.truncate()  # of a `put` that failed
        content = memoryview(b"".join(parts))
        while content:  # an unbuffered file may take less at a time
            content = content[file.write(content) :]
        self._commits.append(_commit(first, places, end))

    def _opened(self) -> io.FileIO:
        if self._file is None:
            lock = FileLock(f"{self._part}.lock")
            lock.acquire(timeout=0)
            self._lock = lock
            self._file = self._part.open("wb", buffering=0)
        return self._file


class Shards:
    """All finished files of a folder, of every rank. It takes no lock, and writes nothing.

    Args:
        folder: It need not exist.

    Raises:
        StoreError: A file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[_Shard] = []
        self.refresh()

    def refresh(self) -> None:
        """Open what there is now, also what other processes have finished.

        Raises:
            StoreError: A file is damaged.
        """
        self._shards = [_Shard(path) for path in sorted(self.folder.glob("*.shard"))]

    def get(self, key: bytes) -> memoryview | None:
        """The value of one key, as `get_many`."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """The value of each key in the mapped file, without a copy, or None where there is none.

        Raises:
            ValueError: A key has not 16 bytes.
            StoreError: A record is damaged.
        """
        for key in keys:
            _require_key(key)
        wanted = np.frombuffer(b"".join(keys), _U8)[::2]
        found: list[memoryview | None] = [None] * len(keys)
        for shard in self._shards:
            for number, behind in shard.candidates(wanted):
                if found[number] is None:
                    found[number] = shard.value(keys[number], behind)
        return found

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    @property
    def documents(self) -> int:
        """Number of values; of a key put twice, as by two ranks, both count."""
        return sum(len(shard) for shard in self._shards)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(shard.bytes for shard in self._shards)


def take_over(folder: Path) -> None:
    """Finish what interrupted processes have left; by one rank only, before any writes.

    Raises:
        StoreError: One of them still writes.
    """
    for part in sorted(folder.glob("*.part")):
        lock = FileLock(f"{part}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                "another run is filling it",
                key="advanced.store",
                value=str(folder),
                remedy="Wait until it has, or name another folder with `advanced.store`.",
            ) from error
        try:
            if part.exists():
                _finish(part, list(_whole_commits(part)))
        finally:
            _release(lock)


class _Commit(NamedTuple):
    """Where its records begin, by the first halves of their keys, and where its last one ends."""

    first: UInt64[np.ndarray, " n"]
    places: UInt64[np.ndarray, " n"]
    end: int


def _commit(first: bytearray, places: list[int], end: int) -> _Commit:
    return _Commit(np.frombuffer(first, _U8), np.array(places, _U8), end)


class _Shard:
    """A finished file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self.bytes = os.fstat(file.fileno()).st_size
            if self.bytes < len(MAGIC) + _FOOT.size or file.read(len(MAGIC)) != MAGIC:
                raise self._damaged("not of this format")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)
        self._end, number, magic = _FOOT.unpack_from(self._map, self.bytes - _FOOT.size)
        index = self._end + -self._end % 8
        if magic != MAGIC or not number or index + 16 * number + _FOOT.size != self.bytes:
            raise self._damaged("it is not complete")
        self._first, self._places = np.frombuffer(self._map, _U8, 2 * number, index).reshape(2, number)

    def __len__(self) -> int:
        return len(self._first)

    def candidates(self, wanted: UInt64[np.ndarray, " m"]) -> Iterator[tuple[int, int]]:
        """Which of the first halves are here, and the place in the index behind the last that equals it."""
        behind = np.searchsorted(self._first, wanted, side="right")
        here = self._first[behind - 1] == wanted  # before 0 is the last, which is larger
        return zip(np.flatnonzero(here).tolist(), behind[here].tolist(), strict=True)

    def value(self, key: bytes, behind: int) -> memoryview | None:
        """Of the records whose keys have the first half of the one before `behind`, the last with this key."""
        first = self._first[behind - 1]
        while behind and self._first[behind - 1] == first:
            behind -= 1
            theirs, value = self._record(int(self._places[behind]))
            if theirs == key:
                return value
        return None

    def _record(self, place: int) -> tuple[bytes, memoryview]:
        if place + _RECORD.size > self._end:
            raise self._damaged("its index")
        check, length, _, key = _RECORD.unpack_from(self._map, place)
        checked = memoryview(self._map)[place + 4 : place + _RECORD.size + length]
        if crc32(checked) != check:
            raise self._damaged(f"the record at {place}")
        return key, checked[_CHECKED.size :]

    def _damaged(self, how: str) -> StoreError:
        return StoreError(
            f"a file of it is damaged ({how})",
            key="advanced.store",
            value=str(self._path),
            remedy="Delete that file.",
        )


def _whole_commits(part: Path) -> Iterator[_Commit]:
    """What was committed to a file that has not been finished."""
    size = part.stat().st_size
    with part.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return
        end, first, places = len(MAGIC), bytearray(), list[int]()
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            check, length, left, key = _RECORD.unpack(head)
            behind = end + _RECORD.size + length
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
        file.write(_FOOT.pack(end, len(first), MAGIC))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, part.with_suffix(".shard"))


def _end_of(commits: Sequence[_Commit]) -> int:
    return commits[-1].end if commits else 0


def _require_key(key: bytes) -> None:
    if len(key) != 16:
        raise ValueError(f"a key has {len(key)} bytes, not 16")


def _release(lock: FileLock) -> None:
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
