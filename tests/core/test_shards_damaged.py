"""Torn and damaged files of a table: whole commits come back, and no wrong value (spec/PACT.md, C7.6 and C7.7)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_files import FIRST, LAST, content, fill, part_after

from pact_plugin.errors import StoreError
from pact_plugin.reference.shard_writer import take_over
from pact_plugin.reference.shards import MAGIC, Shards

ALL = [one for one, _ in FIRST + LAST]
VALUES = [value for _, value in FIRST + LAST]


def recovered(folder: Path, part: bytes) -> Shards:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "00000-left.part").write_bytes(part)
    take_over(folder)
    assert {path.suffix for path in folder.iterdir()} <= {".shard"}
    return Shards(folder)


@pytest.mark.parametrize("behind", [b"", bytes(100), b"\xff" * 100], ids=["nothing", "zeros", "ones"])
def test_a_tail_torn_at_every_byte(tmp_path, behind):
    """All of the last commit or nothing of it, and always all of the one before."""
    whole, first = part_after(tmp_path, FIRST, LAST), len(part_after(tmp_path, FIRST))
    for size in range(first, len(whole) + 1):
        shards = recovered(tmp_path / "torn", whole[:size] + behind)
        complete = size == len(whole) or (whole[:size] + behind)[: len(whole)] == whole
        assert content(shards, ALL) == (VALUES if complete else [*VALUES[:2], None, None, None])


@pytest.mark.parametrize("bit", [0, 7])
def test_a_bit_wrong_at_every_byte_of_the_last_commit(tmp_path, bit):
    whole, first = part_after(tmp_path, FIRST, LAST), len(part_after(tmp_path, FIRST))
    for place in range(first, len(whole)):
        torn = bytearray(whole)
        torn[place] ^= 1 << bit
        assert content(recovered(tmp_path / "torn", bytes(torn)), ALL) == [*VALUES[:2], None, None, None]


def test_torn_in_the_first_commit_nothing_is_left(tmp_path):
    whole = part_after(tmp_path, FIRST)
    for size in range(len(whole)):
        assert recovered(tmp_path / "torn", whole[:size]).documents == 0
        assert not list((tmp_path / "torn").iterdir())


def test_interrupted_at_every_byte_of_finishing(tmp_path):
    log = part_after(tmp_path, FIRST, LAST)
    (path,) = tmp_path.glob("*.shard")
    finished = path.read_bytes()
    assert finished.startswith(log)
    for size in range(len(log), len(finished) + 1):
        assert content(recovered(tmp_path / "torn", finished[:size]), ALL) == VALUES
        (again,) = (tmp_path / "torn").iterdir()
        assert again.read_bytes() == finished


def test_a_truncated_file_is_refused(tmp_path):
    path = fill(tmp_path, 0, FIRST, LAST)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(
            StoreError, match=rf"advanced\.store='{path}': a file of it is damaged.*Delete that file\.$"
        ):
            Shards(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"nothing of the kind" * 1000, MAGIC, MAGIC * 3, MAGIC + bytes([16]) + bytes(15) + MAGIC]
)
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "00000-abc.shard").write_bytes(content)
    with pytest.raises(
        StoreError, match=r"advanced\.store='.*00000-abc\.shard': a file of it is damaged.*Delete that file"
    ):
        Shards(tmp_path)


def test_no_wrong_byte_gives_a_wrong_value(tmp_path):
    """A damaged record or index is refused, or the document is not found; training stops at either (C7.7)."""
    path = fill(tmp_path, 0, FIRST, LAST)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        for bit in (0, 7):
            wrong = bytearray(whole)
            wrong[place] ^= 1 << bit
            path.write_bytes(wrong)
            try:
                found = content(Shards(tmp_path), ALL)
            except StoreError:
                noticed += 1
                continue
            assert all(one in (None, value) for one, value in zip(found, VALUES, strict=True))
            noticed += found != VALUES
    assert noticed >= 2 * (len(whole) - 7), "all but what fills up to a multiple of 8"
