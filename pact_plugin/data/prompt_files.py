"""Prompts from a user's own files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_plugin.data.prompts import BY_COLUMN, KINDS, ColumnNames, PromptSet, from_rows, unusable

SUFFIXES = (".jsonl", ".csv", ".txt")

Rows = Iterator[tuple[int, Mapping[str, Any]]]


def with_column(name: str) -> tuple[str, str]:
    """`file.csv#question` -> the file, and its column of prompts; a file that has `#` in its name is itself."""
    source, mark, column = name.rpartition("#")
    return (source, column) if mark and not Path(name).exists() else (name, "prompt")


def is_file(name: str) -> bool:
    """Whether a name means a file of prompts, there or not, and no data set."""
    return Path(name).is_file() or Path(name).suffix in SUFFIXES


def load_file(path: Path, columns: ColumnNames = BY_COLUMN) -> PromptSet:
    """Prompts from a file.

    Args:
        path: `.jsonl` with one object a line, `.csv` with a header (both with `prompt`, `kind` and, if you like,
            `category` and `request`), or `.txt` with lines such as `harmful: How do I ...`. Empty lines are passed
            over.
        columns: In which columns the prompt and its kind are; with a kind given, rows need none.

    Raises:
        ConfigError: The file is missing, empty or not UTF-8, or a line is not of its format; the line is named.
    """
    readers = dict(zip(SUFFIXES, (_json_lines, _csv_rows, _text_lines), strict=True))
    if path.suffix not in readers:
        raise unusable(str(path), f"neither a {', '.join(SUFFIXES[:-1])} nor a {SUFFIXES[-1]} file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(str(path), f"cannot be read ({error})") from error
    return from_rows(readers[path.suffix](str(path), text, columns), str(path), columns=columns)


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """What the numbered lines of a `.jsonl` file hold.

    Raises:
        ValueError: A line is not a JSON object, or holds what is no Unicode text; it is named.
    """
    for number, line in _filled(text):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        if not _is_unicode(row):
            raise ValueError(f"line {number} holds half of a surrogate pair, which is no text")
        yield number, row


def _is_unicode(row: Mapping[str, Any]) -> bool:
    """Escapes of JSON, such as `\\ud800`, can also stand for what no tokenizer and no file takes."""
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_lines(source: str, text: str, columns: ColumnNames) -> Rows:
    try:
        yield from json_lines(text)
    except ValueError as error:
        raise unusable(source, str(error)) from error


def _csv_rows(source: str, text: str, columns: ColumnNames) -> Rows:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    wanted = {columns.prompt} | ({"kind"} if columns.kind is None else set())
    missing = wanted - set(reader.fieldnames or ())
    if missing:
        raise unusable(source, f"line 1 names no column {' and no column '.join(sorted(missing))}")
    start = reader.line_num + 1
    try:
        for row in reader:
            if None in row:
                raise unusable(source, f"line {start} has more fields than the header")
            yield start, row
            start = reader.line_num + 1  # a quoted prompt may span several lines
    except csv.Error as error:
        raise unusable(source, f"line {start} is not CSV ({error})") from error


def _text_lines(source: str, text: str, columns: ColumnNames) -> Rows:
    if columns.prompt != "prompt":
        raise unusable(source, f"a .txt file has no column {columns.prompt}")
    for number, line in _filled(text):
        kind, colon, prompt = line.partition(":")
        if colon and kind.strip() in KINDS:
            yield number, {"kind": kind.strip(), "prompt": prompt}
        elif columns.kind is not None:
            yield number, {"prompt": line}
        else:
            raise unusable(source, f"line {number} begins with neither `harmful:` nor `benign:`")


def _filled(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())
