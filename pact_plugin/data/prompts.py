"""Prompts that a model is asked: the bundled ones, or rows of a user's own, each marked as harmful or benign."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

from pact_plugin.errors import ConfigError

Kind = Literal["harmful", "benign"]
KINDS: tuple[Kind, ...] = ("harmful", "benign")
BUNDLED = "bundled with pact-plugin"
OWN_ANCHORS = 256
"""Prompts of each kind that are taken from a user's own file of anchors, at most."""
_BUNDLED_POOL = 64
FORMATS = (
    "Give a .jsonl file of objects with `prompt` and `kind` (`harmful` or `benign`), "
    "a .csv file with these two columns, or a .txt file whose lines begin with `harmful:` or `benign:`."
)


@dataclass(frozen=True)
class Prompt:
    """A prompt that a model should refuse (`harmful`) or help with (`benign`)."""

    prompt: str
    kind: Kind
    category: str | None = None
    request: str | None = None
    """What is asked, where several prompts ask for one thing in several styles."""


@dataclass(frozen=True)
class ColumnNames:
    """In which columns of a row the prompt and its kind are.

    Args:
        prompt: Name of the prompt column.
        kind: The kind of every row; None to read it from the column `kind`.
    """

    prompt: str = "prompt"
    kind: Kind | None = None


BY_COLUMN = ColumnNames()


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts, and where they came from."""

    prompts: tuple[Prompt, ...]
    source: str
    repeated: int = 0
    """Repetitions that were left out."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the prompts and their kinds, in order."""
        text = json.dumps([[one.kind, one.prompt] for one in self.prompts], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def texts(self, kind: Kind) -> tuple[str, ...]:
        """The prompts of a kind."""
        return tuple(one.prompt for one in self.prompts if one.kind == kind)

    def limited(self, limit: int | None) -> PromptSet:
        """At most `limit` prompts of each kind, at even distances, so that a set in order keeps its make-up.

        Raises:
            ConfigError: `limit` is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise ConfigError("out of range", key="limit", value=limit, remedy="It must be at least 1.")
        kept: list[Prompt] = []
        for kind in KINDS:
            of_kind = [one for one in self.prompts if one.kind == kind]
            count = min(limit, len(of_kind))
            kept += [of_kind[i * len(of_kind) // count] for i in range(count)]
        return PromptSet(tuple(kept), self.source, self.repeated)


@cache
def bundled() -> PromptSet:
    """The bundled prompts: 220 harmful requests, and 220 benign ones that look like them."""
    rows = [row | {"kind": kind} for kind in KINDS for row in packaged(f"{kind}.jsonl")]
    return from_rows(enumerate(rows, 1), BUNDLED)


@cache
def for_pool() -> PromptSet:
    """334 harmful and 386 benign prompts that the aligned model is asked before training.

    Single sentences (64 of `bundled`, of all categories, and others), and other registers: orders, long set-ups,
    role-plays, lists of steps, tasks about alarming texts; among the benign ones also everyday questions, mathematics
    and code.
    """
    own = [vars(one) for one in bundled().limited(_BUNDLED_POOL).prompts]
    return from_rows(enumerate([*own, *packaged("anchors.jsonl"), *packaged("registers.jsonl")], 1), BUNDLED)


def for_audits() -> PromptSet:
    """156 of `bundled` of each kind, none of them in the pool: training has held those."""
    held = set(for_pool().prompts)
    whole = bundled()
    return PromptSet(tuple(one for one in whole.prompts if one not in held), BUNDLED)


def packaged(name: str) -> list[dict[str, Any]]:
    """The rows of a file that the package brings."""
    text = files("pact_plugin").joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def from_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    source: str,
    unit: str = "line",
    columns: ColumnNames = BY_COLUMN,
) -> PromptSet:
    """Prompts from numbered rows; repetitions are left out.

    Args:
        rows: Each with a prompt, `kind` and perhaps `category`, and `request` or `id` where several prompts ask for one
            thing.
        source: What they come from.
        unit: What a number counts.
        columns: In which columns of a row the prompt and its kind are.

    Raises:
        ConfigError: A row is not of this format, the same prompt has both kinds, or there is no row.
    """
    by_text: dict[str, tuple[int, Prompt]] = {}
    repeated = 0
    for number, row in rows:
        prompt = _prompt(row, source, f"{unit} {number}", columns)
        first, same = by_text.setdefault(prompt.prompt, (number, prompt))
        if same.kind != prompt.kind:
            problem = f"{unit} {number} calls a prompt {prompt.kind} that {unit} {first} calls {same.kind}"
            raise unusable(source, problem)
        repeated += first != number
    if not by_text:
        raise unusable(source, "holds no prompt")
    return PromptSet(tuple(prompt for _, prompt in by_text.values()), source, repeated)


def _prompt(row: Mapping[str, Any], source: str, where: str, columns: ColumnNames) -> Prompt:
    prompt, kind = row.get(columns.prompt), row.get("kind")
    if not isinstance(prompt, str) or not prompt.strip():
        others = "" if columns.prompt in row else f", only {', '.join(map(str, row)) or 'nothing'}"
        raise unusable(source, f"{where} has no text `{columns.prompt}`{others}")
    if columns.kind is None and kind not in KINDS:
        raise unusable(source, f"{where} has kind {kind!r}, not `harmful` or `benign`")
    if columns.kind is not None and kind in KINDS and kind != columns.kind:
        raise unusable(source, f"{where} is {kind} by its own column, and was given as {columns.kind}")
    return Prompt(
        prompt.strip(),
        columns.kind or cast(Kind, kind),
        _filled(row, "category"),
        _filled(row, "request") or _filled(row, "id"),
    )


def _filled(row: Mapping[str, Any], name: str) -> str | None:
    """A field as text; None where it is missing or blank, as an empty cell of a table is."""
    value = row.get(name)
    return None if value is None else str(value).strip() or None


def together(sets: Sequence[PromptSet]) -> PromptSet:
    """Several sets as one; what another set has already is left out.

    Raises:
        ConfigError: Two sets call one prompt harmful and benign.
    """
    if len(sets) == 1:
        return sets[0]
    by_text: dict[str, tuple[int, Prompt]] = {}
    repeated = sum(prompt_set.repeated for prompt_set in sets)
    for number, prompt_set in enumerate(sets):
        for prompt in prompt_set.prompts:
            # Numbers of requests begin anew in each set.
            request = None if prompt.request is None else f"{prompt_set.source}: {prompt.request}"
            first, same = by_text.setdefault(prompt.prompt, (number, replace(prompt, request=request)))
            if same.kind != prompt.kind:
                problem = f"calls {prompt.prompt[:60]!r} {prompt.kind}, and {sets[first].source} {same.kind}"
                raise unusable(prompt_set.source, problem)
            repeated += first != number
    sources = ", ".join(dict.fromkeys(prompt_set.source for prompt_set in sets))
    return PromptSet(tuple(prompt for _, prompt in by_text.values()), sources, repeated)


def unusable(source: str, problem: str) -> ConfigError:
    """The error of prompts that cannot be used."""
    return ConfigError(problem, key="prompts", value=source, remedy=FORMATS)


def of_kind(prompts: Sequence[Prompt], kind: Kind) -> list[int]:
    """Where the prompts of a kind stand."""
    return [index for index, one in enumerate(prompts) if one.kind == kind]
