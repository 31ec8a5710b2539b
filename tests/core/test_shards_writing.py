"""Writing the files of a table: commits that fail, processes that are killed, several at once (C7.6)."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from filelock import FileLock
from shard_files import FIRST, SIZE, commit, content, fill, key, part_after

from pact_plugin.errors import StoreError
from pact_plugin.reference.shard_writer import Writer, take_over
from pact_plugin.reference.shards import MAGIC, Shards

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
