"""Two tables of a stored reference side by side: memory-mapped files with a sorted index, and LMDB.

    python -m benchmarks.table --backend shards --documents 1000000 --columns 1

fills one, looks documents up in it and kills processes that fill one. Every phase is a process of its own, so that each
has its own peak of memory. Making the keys and values is not in any time. Times are wall and processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing as mp
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import lmdb
import numpy as np

from pact_plugin.reference import shard_writer, shards

POSITIONS = 16
"""Of a document, float16 each in every column."""
COMMIT = 512
"""Documents."""
BATCH = 32
"""Documents looked up together."""
WARM, COLD = 64_000, 4_096
"""Documents looked up."""
KILLS = 6
_POOL = np.random.default_rng(0).bytes(2**24)


# --- the tables ---


class Writer(Protocol):
    """What fills: `shard_writer.Writer`."""

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Reader(Protocol):
    """What looks up: `shards.Shards`."""

    def get_many(self, keys: Sequence[bytes]) -> Sequence[Any]: ...

    @property
    def documents(self) -> int: ...


class LmdbWriter:
    """LMDB as `pact_plugin/store_file.py` has it; `sync` waits for the disk at each commit, LMDB's default."""

    def __init__(self, folder: Path, rank: int, sync: bool = True) -> None:
        self._part = folder / f"{rank:05d}-{os.getpid()}.part"
        self._env = lmdb.open(str(self._part), subdir=False, lock=False, map_size=2**28, sync=sync)

    def __enter__(self) -> LmdbWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._env.sync(True)
        self._env.close()
        os.replace(self._part, self._part.with_suffix(".lmdb"))

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        rows = list(items)
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in rows:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])


class LmdbReader:
    """All finished files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._environments = [
            lmdb.open(str(path), subdir=False, lock=False, readonly=True, readahead=False)
            for path in sorted(folder.glob("*.lmdb"))
        ]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = [None] * len(keys)
        for environment in self._environments:
            with environment.begin(buffers=True) as transaction:
                for number, key in enumerate(keys):
                    if found[number] is None and (value := transaction.get(key)) is not None:
                        found[number] = bytes(value)
        return found

    @property
    def documents(self) -> int:
        return sum(environment.stat()["entries"] for environment in self._environments)


def _lmdb_take_over(folder: Path) -> None:
    for part in folder.glob("*.part"):
        lmdb.open(str(part), subdir=False, lock=False, readonly=True).close()
        os.replace(part, part.with_suffix(".lmdb"))


class SyncedWriter(shard_writer.Writer):
    """Waits for the disk at each commit, as LMDB does."""

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        super().put(items)
        os.fdatasync(self._opened().fileno())


@dataclass(frozen=True)
class Backend:
    """One way to keep the table."""

    writer: Callable[[Path, int], Writer]
    reader: Callable[[Path], Reader]
    take_over: Callable[[Path], None]


BACKENDS = {
    "shards": Backend(shard_writer.Writer, shards.Shards, shard_writer.take_over),
    "shards-sync": Backend(SyncedWriter, shards.Shards, shard_writer.take_over),
    "lmdb": Backend(LmdbWriter, LmdbReader, _lmdb_take_over),
    "lmdb-nosync": Backend(lambda f, r: LmdbWriter(f, r, sync=False), LmdbReader, _lmdb_take_over),
}


# --- what is put in ---


@dataclass(frozen=True)
class Setting:
    """One table to be measured."""

    backend: str
    documents: int
    columns: int
    folder: Path
    ranks: int
    limit: float
    """Seconds to fill, keys and values included."""

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return POSITIONS * self.columns * 2

    def value(self, number: int) -> bytes:
        start = number * 2654435761 % (len(_POOL) - self.size)
        return _POOL[start : start + self.size]

    def commit(self, number: int) -> list[tuple[bytes, bytes]]:
        last = min((number + 1) * COMMIT, self.documents)
        return [(key(n), self.value(n)) for n in range(number * COMMIT, last)]


def key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


# --- what is measured ---


class Clock:
    """Wall and processor seconds in `with` blocks, added up."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, cpu = self._start
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def scaled(self, factor: float = 1.0) -> dict[str, float]:
        return {"wall": self.wall * factor, "cpu": self.cpu * factor}


def memory() -> dict[str, float]:
    """MiB of this process now: the peak, what is resident, and what of it is not a file's."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    names = {"peak": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon"}
    return {name: int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024 for name, key in names.items()}  # type: ignore[index]


def fill(setting: Setting, rank: int, pipe: Connection, tell: bool = False) -> None:
    """Fill with the commits of one rank."""
    before, began = memory(), time.perf_counter()
    put, finish, number = Clock(), Clock(), 0
    with finish:
        writer = BACKENDS[setting.backend].writer(setting.folder, rank).__enter__()
    for commit in range(rank, -(-setting.documents // COMMIT), setting.ranks):
        items = setting.commit(commit)
        with put:
            writer.put(items)
        number += len(items)
        if tell:
            pipe.send(commit)
        if time.perf_counter() - began > setting.limit:
            break
    during = memory()
    with finish:
        writer.__exit__(None, None, None)
    both = {"wall": put.wall + finish.wall, "cpu": put.cpu + finish.cpu}
    pipe.send(
        {
            "documents": number,
            "seconds": both,
            "finish": finish.scaled(),
            "memory": {"before": before, "during": during, "end": memory()},
        }
    )


def look_up(setting: Setting, number: int, absent: bool, pipe: Connection) -> None:
    """Look up `number` random documents, or documents that are not there."""
    before, opening, clock = memory(), Clock(), Clock()
    with opening:
        reader = BACKENDS[setting.backend].reader(setting.folder)
    opened = memory()
    assert reader.documents == setting.documents
    random = np.random.default_rng([number, absent])
    for _ in range(number // BATCH):
        ids = random.integers(setting.documents, size=BATCH).tolist()
        keys = [key(n + setting.documents * absent) for n in ids]
        with clock:
            found = [None if value is None else bytes(value) for value in reader.get_many(keys)]
        assert found == [None if absent else setting.value(n) for n in ids]
    pipe.send(
        {
            "seconds_per_1000": clock.scaled(1000 / number),
            "opening": opening.scaled(),
            "memory": {"before": before, "opened": opened, "end": memory()},
        }
    )


def processes(target: Callable[..., None], *calls: tuple[Any, ...]) -> list[dict[str, Any]]:
    """What each process sends, all of them at once."""
    context, running = mp.get_context("spawn"), []
    for arguments in calls:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(*arguments, theirs))
        process.start()
        theirs.close()
        running.append((process, ours))
    results = [ours.recv() for _, ours in running]
    for process, _ in running:
        process.join()
    return results


def kill(setting: Setting) -> dict[str, Any]:
    """Processes killed at random moments: what of the commits that they had made is there after a take-over."""
    random, context, rounds = np.random.default_rng(0), mp.get_context("spawn"), []
    for _ in range(KILLS):
        _empty(setting.folder)
        ours, theirs = context.Pipe()
        process = context.Process(target=fill, args=(setting, 0, theirs, True))
        process.start()
        theirs.close()
        made = [ours.recv() for _ in range(int(random.integers(20, 100)))]
        time.sleep(random.uniform(0, 0.02))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        made += list(_rest(ours))
        BACKENDS[setting.backend].take_over(setting.folder)
        reader = BACKENDS[setting.backend].reader(setting.folder)
        there = []
        for number in range(len(made) + 2):
            items = setting.commit(number)
            values = reader.get_many([one for one, _ in items])
            right = [
                value is not None and bytes(value) == wanted
                for value, (_, wanted) in zip(values, items, strict=True)
            ]
            there.append(sum(right) / len(right))
        rounds.append(
            {"made": len(made), "whole": there.count(1.0), "partial": sum(0 < x < 1 for x in there)}
        )
    return {
        "rounds": rounds,
        "commits_lost": max(max(0, one["made"] - one["whole"]) for one in rounds),
        "partial": sum(one["partial"] for one in rounds),
    }


def _rest(pipe: Connection) -> Iterator[int]:
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return


# --- the page cache ---


def drop(folder: Path) -> float:
    """Drop the files' pages, and return the MiB that stay nevertheless."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(folder)


def warm(folder: Path) -> float:
    """Read the files from end to end, and return the MiB that are then in memory."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass
    return resident(folder)


def resident(folder: Path) -> float:
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, folder.iterdir())]
    return (
        sum(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))
        / 2**20
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


# --- all of it ---


def measured(setting: Setting) -> dict[str, Any]:
    """Everything about one table."""
    _empty(setting.folder)
    began = time.perf_counter()
    filled = processes(fill, *((setting, rank) for rank in range(setting.ranks)))
    result: dict[str, Any] = {
        "setting": asdict(setting) | {"folder": str(setting.folder)},
        "fill": filled,
        "fill_wall_with_keys_and_values": time.perf_counter() - began,
        "bytes": sum(path.stat().st_size for path in setting.folder.iterdir()),
        "bytes_allocated": sum(path.stat().st_blocks * 512 for path in setting.folder.iterdir()),
    }
    if sum(one["documents"] for one in filled) < setting.documents:
        return result | {"finished": False}
    result["finished"] = True
    for name, number, absent, prepare in (
        ("cold", COLD, False, drop),
        ("cold_absent", COLD, True, drop),
        ("warm", WARM, False, warm),
        ("warm_absent", WARM, True, warm),
    ):
        stays = prepare(setting.folder)
        (found,) = processes(look_up, (setting, number, absent))
        result[name] = found | {"resident_before": stays}
    return result


def row(result: dict[str, Any]) -> str:
    """A line of a Markdown table."""
    setting, fills = result["setting"], result["fill"]

    def times(seconds: dict[str, float], scale: float = 1.0, digits: int = 2) -> str:
        return f"{seconds['wall'] * scale:.{digits}f} ({seconds['cpu'] * scale:.{digits}f})"

    cells = [
        setting["backend"],
        f"{setting['documents']:,}",
        str(setting["columns"]),
        str(setting["ranks"]),
        ", ".join(times(one["seconds"]) for one in fills)
        if result["finished"]
        else f"not finished: {sum(one['documents'] for one in fills):,} in {setting['limit'] / 60:.0f} min",
        f"{result['bytes'] / 2**20:,.0f}",
        f"{max(one['memory']['end']['peak'] - one['memory']['before']['resident'] for one in fills):,.0f}",
    ]
    for name in ("warm", "warm_absent", "cold", "cold_absent"):
        cells.append(times(result[name]["seconds_per_1000"], 1000, 1) if name in result else "")
    if "cold" in result:
        opened = result["cold"]["memory"]
        cells.append(f"{opened['opened']['resident'] - opened['before']['resident']:.1f}")
    return f"| {' | '.join(cells)} |"


HEAD = """| table | documents | columns | ranks | fill, s | MiB | peak | warm | absent | cold | absent | open, MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
"""Wall (processor); milliseconds to look up 1,000 documents; memory is the peak above what the process had before."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", choices=list(BACKENDS), required=True)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=1, help=f"of {POSITIONS} float16 in each document")
    parser.add_argument("--ranks", type=int, default=1, help="processes that fill at once")
    parser.add_argument("--minutes", type=float, default=15.0, help="to fill at most")
    parser.add_argument(
        "--kill", action="store_true", help="kill processes that fill, and measure nothing else"
    )
    parser.add_argument("--folder", type=Path, help="where to; its content is deleted before and after")
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="table-"))
    setting = Setting(given.backend, given.documents, given.columns, folder, given.ranks, 60 * given.minutes)
    try:
        if given.kill:
            result = {"setting": asdict(setting) | {"folder": str(folder)}, "kill": kill(setting)}
            print(json.dumps(result["kill"]))
        else:
            result = measured(setting)
            print(HEAD, row(result), sep="\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
