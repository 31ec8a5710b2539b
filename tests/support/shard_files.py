"""Files of a table with records that say which they are, whole and interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pact_plugin.reference.shard_writer import Writer
from pact_plugin.reference.shards import Shards

Items = list[tuple[bytes, bytes]]
SIZE = 50


def key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


FIRST, LAST = [(key(n), bytes([n]) * n) for n in (1, 2)], [(key(n), bytes([n]) * n) for n in (3, 0, 5)]


def commit(rank: int, number: int, length: int = 20_000) -> Items:
    """SIZE records whose values say which they are."""
    first = (rank * 1000 + number) * SIZE
    return [(key(n), n.to_bytes(4, "little") * (length // 4)) for n in range(first, first + SIZE)]


def fill(folder: Path, rank: int, *commits: Items) -> Path:
    """A finished file."""
    before = set(folder.glob("*.shard"))
    with Writer(folder, rank) as writer:
        for items in commits:
            writer.put(items)
    (path,) = set(folder.glob("*.shard")) - before
    return path


def content(shards: Shards, keys: list[bytes]) -> list[bytes | None]:
    return [None if value is None else bytes(value) for value in shards.get_many(keys)]


def part_after(folder: Path, *commits: Items) -> bytes:
    """The file of a process that was interrupted after some commits."""
    with Writer(folder, 0) as writer:
        for items in commits:
            writer.put(items)
        (part,) = folder.glob("*.part")
        return part.read_bytes()
