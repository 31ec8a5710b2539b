"""The prompts of an audit: the bundled ones, or a user's own, each marked as harmful or benign."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from pact_plugin.errors import ConfigError

Kind = Literal["harmful", "benign"]
KINDS: tuple[Kind, ...] = ("harmful", "benign")
BUNDLED = "bundled with pact-plugin"
ANCHORS = 256
"""Anchors of each kind, at most."""
_BUNDLED_ANCHORS = 64
SUFFIXES = (".jsonl", ".csv", ".txt")
FORMATS = (
    "Give a .jsonl file of objects with `prompt` and `kind` (`harmful` or `benign`), "
    "a .csv file with these two columns, or a .txt file whose lines begin with `harmful:` or `benign:`. "
    "`category` is optional."
)


@dataclass(frozen=True)
class AuditPrompt:
    """A prompt that a model should refuse (`harmful`) or help with (`benign`)."""

    prompt: str
    kind: Kind
    category: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts, and where they came from."""

    prompts: tuple[AuditPrompt, ...]
    source: str
    repeated: int = 0
    """Repetitions that were left out."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the prompts and their kinds, in order."""
        text = json.dumps([[one.kind, one.prompt] for one in self.prompts], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def limited(self, limit: int | None) -> PromptSet:
        """At most `limit` prompts of each kind, at even distances, so that a set in order keeps its make-up.

        Raises:
            ConfigError: `limit` is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise ConfigError("out of range", key="--limit", value=limit, remedy="It must be at least 1.")
        kept: list[AuditPrompt] = []
        for kind in KINDS:
            of_kind = [one for one in self.prompts if one.kind == kind]
            count = min(limit, len(of_kind))
            kept += [of_kind[i * len(of_kind) // count] for i in range(count)]
        return PromptSet(tuple(kept), self.source, self.repeated)


def bundled() -> PromptSet:
    """The bundled prompts: 220 harmful requests, and 220 benign ones that look like them."""
    rows = [row | {"kind": kind} for kind in KINDS for row in _packaged(f"{kind}.jsonl")]
    return from_rows(enumerate(rows, 1), BUNDLED)


def for_anchors() -> PromptSet:
    """256 prompts of each kind, to which a constrained run is held: 64 of `bundled`, of all categories, and others."""
    own = [vars(one) for one in bundled().limited(_BUNDLED_ANCHORS).prompts]
    return from_rows(enumerate([*own, *_packaged("anchors.jsonl")], 1), BUNDLED)


def for_audits() -> PromptSet:
    """156 of `bundled` of each kind, none of them an anchor: what a model is trained at says little about it."""
    held = set(for_anchors().prompts)
    whole = bundled()
    return PromptSet(tuple(one for one in whole.prompts if one not in held), BUNDLED)


def _packaged(name: str) -> list[dict[str, Any]]:
    text = files("pact_plugin").joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def load_file(path: Path) -> PromptSet:
    """Prompts from a file.

    Args:
        path: `.jsonl` with one object a line, `.csv` with a header (both with `prompt`, `kind` and, if you like,
            `category`), or `.txt` with lines such as `harmful: How do I ...`. Empty lines are passed over.

    Raises:
        ConfigError: The file is missing, empty or not UTF-8, or a line is not of its format; the line is named.
    """
    readers = dict(zip(SUFFIXES, (_json_lines, _csv_rows, _text_lines), strict=True))
    if path.suffix not in readers:
        raise _unusable(str(path), f"neither a {', '.join(SUFFIXES[:-1])} nor a {SUFFIXES[-1]} file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(str(path), f"cannot be read ({error})") from error
    return from_rows(readers[path.suffix](str(path), text), str(path))


def from_rows(rows: Iterable[tuple[int, Mapping[str, Any]]], source: str, unit: str = "line") -> PromptSet:
    """Prompts from numbered rows with `prompt`, `kind` and perhaps `category`; repetitions are left out.

    Raises:
        ConfigError: A row is not of this format, the same prompt has both kinds, or there is no row.
    """
    found: dict[str, tuple[int, AuditPrompt]] = {}
    repeated = 0
    for number, row in rows:
        prompt, kind, category = (row.get(key) for key in ("prompt", "kind", "category"))
        if not isinstance(prompt, str) or not prompt.strip():
            raise _unusable(source, f"{unit} {number} has no text `prompt`")
        if kind not in KINDS:
            raise _unusable(source, f"{unit} {number} has kind {kind!r}, not `harmful` or `benign`")
        one = AuditPrompt(prompt.strip(), cast(Kind, kind), str(category) if category else None)
        first, same = found.setdefault(one.prompt, (number, one))
        if same.kind != kind:
            raise _unusable(
                source, f"{unit} {number} calls a prompt {kind} that {unit} {first} calls {same.kind}"
            )
        repeated += first != number
    if not found:
        raise _unusable(source, "holds no prompt")
    return PromptSet(tuple(one for _, one in found.values()), source, repeated)


def _json_lines(source: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _filled(text):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _unusable(source, f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise _unusable(source, f"line {number} is not a JSON object")
        yield number, row


def _csv_rows(source: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = {"prompt", "kind"} - set(reader.fieldnames or ())
    if missing:
        raise _unusable(source, f"line 1 names no column {' and no column '.join(sorted(missing))}")
    start = reader.line_num + 1
    try:
        for row in reader:
            if None in row:
                raise _unusable(source, f"line {start} has more fields than the header")
            yield start, row
            start = reader.line_num + 1  # a quoted prompt may span several lines
    except csv.Error as error:
        raise _unusable(source, f"line {start} is not CSV ({error})") from error


def _text_lines(source: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _filled(text):
        kind, colon, prompt = line.partition(":")
        if not colon or kind.strip() not in KINDS:
            raise _unusable(source, f"line {number} begins with neither `harmful:` nor `benign:`")
        yield number, {"kind": kind.strip(), "prompt": prompt}


def _filled(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _unusable(source: str, problem: str) -> ConfigError:
    return ConfigError(problem, key="--prompts", value=source, remedy=FORMATS)


def of_kind(prompts: Sequence[AuditPrompt], kind: Kind) -> list[int]:
    """Where the prompts of a kind stand."""
    return [index for index, one in enumerate(prompts) if one.kind == kind]
