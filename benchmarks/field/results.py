"""The cells of a folder, and which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.field.data import HARMFUL_SETS
from benchmarks.field.kept import read_cell
from benchmarks.field.methods import all_names, method_of
from benchmarks.field.paired import Change, Refusals, change
from benchmarks.field.settings import ALIGNED, Cell, Split
from pact_plugin.audit.judging import refuses
from pact_plugin.errors import ConfigError
from pact_plugin.judge import find_judge

HARMFUL = "harmful"
"""All harmful sets together."""


@dataclass(frozen=True)
class Result:
    """A cell with what was measured."""

    cell: Cell
    content: Mapping[str, Any]

    def refusals(self, name: str) -> Refusals:
        """To the prompts of one set, or of all harmful ones."""
        names = HARMFUL_SETS if name == HARMFUL else (name,)
        return {row["prompt"]: row["refused"] for one in names for row in self.content["asked"][one]}


@dataclass(frozen=True)
class Group:
    """The seeds of one method at one strength on the same data, with what they are compared with.

    Attributes:
        cell: That of the first seed.
        seeds: By seed.
        aligned: The aligned model.
        plain: Plain fine-tuning by seed, as far as it was run.
    """

    cell: Cell
    seeds: Mapping[int, Result]
    aligned: Result
    plain: Mapping[int, Result]

    @property
    def label(self) -> str:
        """Method and strength."""
        return label(self.cell)

    @property
    def title(self) -> str:
        """For people."""
        return title(self.cell)

    def change(self, name: str) -> Change | None:
        """Of the refusals to a set, from the aligned model's."""
        before = self.aligned.refusals(name)
        return change([(before, one.refusals(name)) for one in self.seeds.values()])


def label(cell: Cell) -> str:
    """Method and strength, as `--compare` takes them."""
    return cell.method if cell.strength is None else f"{cell.method}@{cell.strength:g}"


def title(cell: Cell) -> str:
    """Method and strength in words; a method that was named on the command line has its name."""
    if cell.method == ALIGNED:
        return "aligned model, before"
    try:
        words = method_of(cell.method).title
    except ConfigError:
        words = cell.method
    return words if cell.strength is None else f"{words}, {cell.strength:g}"


def load(folder: Path, split: Split, *, judge_again: bool = False) -> list[Group]:
    """The groups of a folder, those of the same data beside each other, the aligned model first.

    Args:
        folder: Of the results.
        split: The half that was asked.
        judge_again: Whether the default judge reads all answers again, instead of what it said then.

    Raises:
        ConfigError: There is no result.
    """
    results = [
        Result(Cell(**content["cell"]), content)
        for path in sorted((folder / "cells").glob(f"*-{split}.json"))
        if (content := read_cell(path))["split"] == split
    ]
    if judge_again:
        for one in results:
            _judge(one)
    aligned = {one.cell.task: one for one in results if one.cell.method == ALIGNED}
    runs = [one for one in results if one.cell.method != ALIGNED and one.cell.task in aligned]
    if not runs:
        remedy = "Run some methods first, with the same --output and --split."
        raise ConfigError("no results there", key="output", value=str(folder), remedy=remedy)
    found = []
    for place in dict.fromkeys(replace(one.cell, method=ALIGNED, strength=None, seed=0) for one in runs):
        own = aligned[place.task]
        here = [one for one in runs if one.cell == replace(place, **_of_method(one.cell))]
        plain = {one.cell.seed: one for one in here if one.cell.method == "plain"}
        found.append(Group(place, {0: own}, own, {}))
        for cell in sorted({replace(one.cell, seed=0) for one in here}, key=_rank):
            seeds = {one.cell.seed: one for one in here if replace(one.cell, seed=0) == cell}
            found.append(Group(cell, dict(sorted(seeds.items())), own, plain))
    return found


def named(groups: Sequence[Group], wanted: str) -> list[Group]:
    """The groups of a method, `METHOD` or `METHOD@STRENGTH`, on all data.

    Raises:
        ConfigError: There is none.
    """
    found = [one for one in groups if wanted in (one.label, one.cell.method)]
    if not found:
        labels = ", ".join(dict.fromkeys(one.label for one in groups))
        raise ConfigError("no such result", key="compare", value=wanted, remedy=f"There are: {labels}.")
    return found


def _rank(cell: Cell) -> tuple[int, str, float]:
    """In the order of the methods, those of the command line last, and by strength."""
    names = [*all_names(), cell.method]
    return names.index(cell.method), cell.method, cell.strength or 0.0


def _of_method(cell: Cell) -> dict[str, Any]:
    return {"method": cell.method, "strength": cell.strength, "seed": cell.seed}


def _judge(result: Result) -> None:
    judge = find_judge()
    for rows in result.content["asked"].values():
        prompts, answers = ([row[key] for row in rows] for key in ("prompt", "answer"))
        for row, one in zip(rows, judge.judge(prompts, answers), strict=True):
            row |= {"verdict": one.verdict, "refused": refuses(one.verdict), "score": one.score}
