"""Files that are made once and shared by runs, also by several processes at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pact_plugin.data.files import written_whole
from pact_plugin.errors import ConfigError

VERSION = 3
"""Of a cell's file."""


def write_whole(path: Path, value: Any) -> None:
    """Write JSON: the file is there whole or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Any:
    """Of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_cell(path: Path) -> Any:
    """Of a cell's file.

    Raises:
        ConfigError: It is of another version of the benchmark.
    """
    content = read(path)
    if content.get("version") != VERSION:
        problem = f"{path.name} there is of another version of the benchmark"
        raise ConfigError(problem, key="output", value=str(path.parents[1]), remedy="Give another --output.")
    return content


def locked(folder: Path, name: str) -> FileLock:
    """A lock among the processes that share a folder; waits for the others."""
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "locks" / f"{name}.lock")


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether something is ours to do: false while another process does it."""
    lock = locked(folder, name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def once(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `folder/name.json` holds; made if it is not there."""
    path = folder / f"{name}.json"
    with locked(folder, name):
        if not path.is_file():
            write_whole(path, make())
        return read(path)
