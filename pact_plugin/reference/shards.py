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

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import UInt64

from pact_plugin.errors import StoreError

MAGIC = b"pact-shard 1\r\n\0\0"
RECORD = struct.Struct("<III16s")
"""Check, length, left and key."""
CHECKED = struct.Struct("<II16s")
"""The part of a record that `check` covers, before the value."""
INDEXED = 16
"""Bytes of a record's place in the index."""
FOOT = struct.Struct("<QQ16s")
U8 = np.dtype("<u8")


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
        """Open all finished files, also those that other processes have added since.

        Raises:
            StoreError: A file is damaged.
        """
        self._shards = [_Shard(path) for path in sorted(self.folder.glob("*.shard"))]

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """The value of each key in the mapped file, without a copy, or None where there is none.

        Raises:
            ValueError: A key has not 16 bytes.
            StoreError: A record is damaged.
        """
        for key in keys:
            require_key(key)
        wanted = np.frombuffer(b"".join(keys), U8)[::2]
        found: list[memoryview | None] = [None] * len(keys)
        for shard in self._shards:
            for number, behind in shard.candidates(wanted):
                if found[number] is None:
                    found[number] = shard.value(keys[number], behind)
        return found

    @property
    def documents(self) -> int:
        """Number of values; of a key put twice, as by two ranks, both count."""
        return sum(len(shard) for shard in self._shards)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(shard.bytes for shard in self._shards)


class _Shard:
    """A finished file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self.bytes = os.fstat(file.fileno()).st_size
            if self.bytes < len(MAGIC) + FOOT.size or file.read(len(MAGIC)) != MAGIC:
                raise self._damaged("not of this format")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._end, number, magic = FOOT.unpack_from(self._map, self.bytes - FOOT.size)
        index = self._end + -self._end % 8
        if magic != MAGIC or not number or index + INDEXED * number + FOOT.size != self.bytes:
            raise self._damaged("it is not complete")
        if hasattr(
            mmap, "MADV_RANDOM"
        ):  # a page of the log at a time; the index is small, and soon read whole
            self._map.madvise(mmap.MADV_RANDOM, 0, self._end)
        self._first, self._places = np.frombuffer(self._map, U8, 2 * number, index).reshape(2, number)

    def __len__(self) -> int:
        return len(self._first)

    def candidates(self, wanted: UInt64[np.ndarray, " m"]) -> Iterator[tuple[int, int]]:
        """For each first half of a key that is here: its number in `wanted`, and the end of its run in the index."""
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
        if place + RECORD.size > self._end:
            raise self._damaged("its index")
        check, length, _, key = RECORD.unpack_from(self._map, place)
        checked = memoryview(self._map)[place + 4 : place + RECORD.size + length]
        if crc32(checked) != check:
            raise self._damaged(f"the record at {place}")
        return key, checked[CHECKED.size :]

    def _damaged(self, how: str) -> StoreError:
        return StoreError(
            f"a file of it is damaged ({how})",
            key="advanced.store",
            value=str(self._path),
            remedy="Delete that file.",
        )


def require_key(key: bytes) -> None:
    """Raise `ValueError` unless a key has 16 bytes."""
    if len(key) != 16:
        raise ValueError(f"a key has {len(key)} bytes, not 16")
