"""The files of a table: what comes back, and after which accidents (spec/PACT.md, clause C7.6)."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_plugin.errors import StoreError
from pact_plugin.reference.shard_writer import Writer, take_over
from pact_plugin.reference.shards import MAGIC, Shards

Items = list[tuple[bytes, bytes]]
SIZE = 50


def key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


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


def recovered(folder: Path, part: bytes) -> Shards:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "00000-left.part").write_bytes(part)
    take_over(folder)
    assert {path.suffix for path in folder.iterdir()} <= {".shard"}
    return Shards(folder)


# --- what comes back ---

KEYS = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(
    lambda halves: b"".join(half.to_bytes(8, "big") for half in halves)
)
RANKS = st.lists(
    st.lists(st.lists(st.tuples(KEYS, st.binary(max_size=40)), max_size=6), max_size=5), max_size=3
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(RANKS, st.lists(KEYS, max_size=12))
def test_what_was_put_comes_back_also_from_what_an_interrupted_process_left(tmp_path_factory, ranks, asked):
    folder, left = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    expected: dict[bytes, bytes] = {}
    for rank, commits in enumerate(ranks):
        with Writer(folder, rank) as writer:
            for items in commits:
                writer.put(items)
            for part in folder.glob("*.part"):
                shutil.copy(part, left)
        expected = dict(item for items in commits for item in items) | expected  # the first rank's counts
    take_over(left)
    for shards in (Shards(folder), Shards(left)):
        assert content(shards, asked) == [expected.get(one) for one in asked]
        assert shards.documents == sum(len(items) for commits in ranks for items in commits)
        assert shards.bytes == sum(path.stat().st_size for path in shards.folder.iterdir())
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == {path.name: path.read_bytes() for path in left.iterdir()}


@pytest.mark.parametrize("place", range(16))
def test_keys_that_differ_in_one_byte(tmp_path, place):
    one = key(1)
    other = bytes(byte ^ (0x80 if at == place else 0) for at, byte in enumerate(one))
    fill(tmp_path, 0, [(one, b"one"), (key(2), b"two")])
    shards = Shards(tmp_path)
    assert content(shards, [one, other]) == [b"one", None]
    fill(tmp_path, 1, [(other, b"other"), (one, b"again")])
    shards.refresh()
    assert content(shards, [other, one]) == [b"other", b"one"]
    assert shards.documents == 4


def test_many_keys_with_one_first_half(tmp_path):
    keys = [b"the same" + number.to_bytes(8, "little") for number in range(100)]
    around = [b"the samd" + bytes(8), b"the samf" + bytes(8)]
    fill(tmp_path, 0, [(one, one[::-1]) for one in keys[::2]])
    assert content(Shards(tmp_path), keys[::2] + around) == [*(one[::-1] for one in keys[::2]), None, None]
    assert content(Shards(tmp_path), keys[1::2]) == [None] * 50


def test_the_first_and_the_last_of_all_keys(tmp_path):
    lowest, highest = bytes(16), b"\xff" * 16
    fill(tmp_path, 0, [(key(1), b"1")])
    assert content(Shards(tmp_path), [lowest, highest]) == [None, None]
    fill(tmp_path, 0, [(highest, b""), (lowest, b"low")])
    assert content(Shards(tmp_path), [lowest, highest]) == [b"low", b""]


def test_nothing_is_there_before_the_first_put(tmp_path):
    assert content(Shards(tmp_path / "none"), [key(1)]) == [None]
    with Writer(tmp_path, 0) as writer:
        writer.put([])
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    shards = Shards(tmp_path)
    assert (shards.documents, shards.bytes, shards.get_many([]), shards.get_many([key(1)])) == (
        0,
        0,
        [],
        [None],
    )


def test_values_stay_readable_after_a_refresh_and_a_deletion(tmp_path):
    path = fill(tmp_path, 0, [(key(1), b"value")])
    shards = Shards(tmp_path)
    (value,) = shards.get_many([key(1)])
    path.unlink()
    shards.refresh()
    assert content(shards, [key(1)]) == [None]
    assert value == b"value"
    assert value.readonly


def test_a_file_in_the_making_is_not_read(tmp_path):
    shards = Shards(tmp_path)
    with Writer(tmp_path, 0) as writer:
        writer.put([(key(1), b"value")])
        shards.refresh()
        assert content(shards, [key(1)]) == [None]
    shards.refresh()
    assert content(shards, [key(1)]) == [b"value"]


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_key_of_another_length(tmp_path, length):
    with Writer(tmp_path, 0) as writer:
        writer.put([(key(1), b"1")])
        with pytest.raises(ValueError, match=f"a key has {length} bytes, not 16"):
            writer.put([(key(2), b"2"), (bytes(length), b"3")])
    with pytest.raises(ValueError, match=f"a key has {length} bytes, not 16"):
        Shards(tmp_path).get_many([key(1), bytes(length)])
    assert content(Shards(tmp_path), [key(1), key(2)]) == [b"1", None]


def test_a_read_only_folder(tmp_path):
    fill(tmp_path, 0, commit(0, 0))
    for path in [*tmp_path.iterdir(), tmp_path]:
        path.chmod(0o555 if path == tmp_path else 0o444)
    before = {path: path.stat() for path in [tmp_path, *tmp_path.iterdir()]}
    keys, values = zip(*commit(0, 0), strict=True)
    assert content(Shards(tmp_path), keys) == list(values)
    after = {path: path.stat() for path in [tmp_path, *tmp_path.iterdir()]}
    assert {path: (s.st_mtime_ns, s.st_size) for path, s in before.items()} == {
        path: (s.st_mtime_ns, s.st_size) for path, s in after.items()
    }
    tmp_path.chmod(0o755)


def test_opening_reads_next_to_nothing(tmp_path):
    """Memory of the process does not grow with what is stored."""
    fill(tmp_path, 0, [(key(n), bytes(1000)) for n in range(50_000)])
    code = """
import re, sys
from pathlib import Path
from pact_plugin.reference.shards import Shards
def rss(): return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Shards(Path("none"))
before = rss()
shards = Shards(Path(sys.argv[1]))
assert shards.documents == 50_000 and shards.bytes > 50_000_000
print(rss() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1024, "KiB"


# --- commits that fail ---


def test_items_that_fail_while_they_are_made(tmp_path):
    def failing():
        yield key(2), b"2"
        raise KeyboardInterrupt

    with Writer(tmp_path, 0) as writer:
        writer.put([(key(1), b"1")])
        with pytest.raises(KeyboardInterrupt):
            writer.put(failing())
    assert content(Shards(tmp_path), [key(1), key(2)]) == [b"1", None]


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_a_full_disk(tmp_path, committed, again):
    """A file that takes no more than a part of a commit: what was committed stays, and the next one may succeed."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Writer(tmp_path, 0) as writer:
            if committed:
                writer.put(commit(0, 0))
            size = sum(path.stat().st_size for path in tmp_path.glob("*.part"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, limits[1]))
            with pytest.raises(OSError, match="File too large"):
                writer.put(commit(0, 1))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            if again:
                writer.put(commit(0, 2, 4))
                (part,) = tmp_path.glob("*.part")
                assert part.stat().st_size == max(size, len(MAGIC)) + SIZE * (28 + 4), "nothing else"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    expected = [*commit(0, 0)] * committed + [*commit(0, 2, 4)] * again
    shards = Shards(tmp_path)
    assert shards.documents == len(expected)
    assert content(shards, [one for one, _ in expected]) == [value for _, value in expected]
    assert {path.suffix for path in tmp_path.iterdir()} == ({".shard"} if expected else set())


# --- torn and damaged files ---

FIRST, LAST = [(key(n), bytes([n]) * n) for n in (1, 2)], [(key(n), bytes([n]) * n) for n in (3, 0, 5)]
ALL = [one for one, _ in FIRST + LAST]
VALUES = [value for _, value in FIRST + LAST]


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


# --- accidents and company ---


def start(folder: Path, rank: int, commits: int, length: int) -> tuple[BaseProcess, TextIO]:
    """A fork that fills a folder, and the lines that it writes: one after each commit."""
    read, write = os.pipe()

    def run() -> None:
        with Writer(folder, rank) as writer:
            for number in range(commits):
                writer.put(commit(rank, number, length))
                os.write(write, b"commit\n")

    process = get_context("fork").Process(target=run, daemon=True)
    process.start()
    os.close(write)
    return process, os.fdopen(read)


def require(folder: Path, rank: int, length: int, least: int, most: int) -> None:
    """Commits are there up to some number, whole and right."""
    shards = Shards(folder)
    there = []
    for number in range(most):
        items = commit(rank, number, length)
        found = content(shards, [one for one, _ in items])
        assert found in ([value for _, value in items], [None] * SIZE)
        there.append(found[0] is not None)
    assert there == sorted(there, reverse=True)
    assert least <= sum(there)


def test_killed_at_any_moment_no_commit_is_lost(tmp_path):
    """Commits are of 10 MB, so that some of the processes are killed within one."""
    moments, length = np.random.default_rng(0), 200_000
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        process, lines = start(folder, 0, 900, length)
        with lines:
            for _ in range(3):
                lines.readline()
            time.sleep(moments.uniform(0, 0.03))
            with pytest.raises(
                StoreError, match=rf"advanced\.store='{folder}': another run is filling it.*Wait until it has"
            ):
                take_over(folder)
            process.kill()
            done = 3 + len(lines.readlines())
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert {path.suffix for path in folder.iterdir()} == {".part", ".lock"}
        take_over(folder)
        fill(folder, 0, commit(0, 950))
        assert {path.suffix for path in folder.iterdir()} == {".shard"}
        require(folder, 0, length, done, done + 2)
        assert content(Shards(folder), [key(950 * SIZE)]) != [None]
        shutil.rmtree(folder)


def test_two_ranks_fill_one_folder(tmp_path):
    processes = [start(tmp_path, rank, 40, 20_000) for rank in (0, 1)]
    for process, lines in processes:
        with lines:
            assert len(lines.readlines()) == 40
        process.join()
        assert process.exitcode == 0
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["00000", "00001"]
    shards = Shards(tmp_path)
    assert shards.documents == 2 * 40 * SIZE
    for rank in (0, 1):
        require(tmp_path, rank, 20_000, 40, 40)
    items = [*commit(0, 3), *commit(1, 39)]
    assert content(shards, [one for one, _ in items]) == [value for _, value in items]


def test_a_part_that_somebody_holds_is_left_alone(tmp_path):
    part = tmp_path / "00003-abc.part"
    part.write_bytes(part_after(tmp_path, FIRST))
    with (
        FileLock(f"{part}.lock"),
        pytest.raises(
            StoreError, match=r"another run is filling it\. Wait until it has, or name another folder"
        ),
    ):
        take_over(tmp_path)
    assert part.exists()
    take_over(tmp_path)
    take_over(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".shard"}
    assert Shards(tmp_path).documents == 4


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """Such as NFS without a lock daemon."""

    def no_locks(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / "00003-abc.part").write_bytes(b"")
    message = r"advanced\.store=.*cannot be locked \(.*No locks available\).*another file system"
    with pytest.raises(StoreError, match=message), Writer(tmp_path, 0) as writer:
        writer.put(FIRST)
    with pytest.raises(StoreError, match=message):
        take_over(tmp_path)
