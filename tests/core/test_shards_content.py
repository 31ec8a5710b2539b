"""What comes back from the files of a table, and what reading them costs (spec/PACT.md, clause C7.6)."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import commit, content, fill, key

from pact_plugin.reference.shard_writer import Writer, take_over
from pact_plugin.reference.shards import Shards

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
