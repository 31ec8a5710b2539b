"""The verdicts on the answers kept in cells: given when a report is written, so that a new judge needs no new run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.preservation.judges import Judge
from benchmarks.preservation.prompts import KINDS, Kind, Prompts, Split, prompts_of
from benchmarks.preservation.verdicts import Verdict
from pact_plugin.errors import ConfigError


@dataclass(frozen=True)
class Judged:
    """A cell, and the verdicts on its answers.

    Attributes:
        content: What its file holds.
        prompts: What was asked, in the order of the answers.
        verdicts: By judge, then by kind of prompt; of the kinds that the judge knows about.
    """

    content: dict[str, Any]
    prompts: Prompts
    verdicts: dict[str, dict[Kind, list[Verdict]]] = field(default_factory=dict)

    @property
    def cell(self) -> dict[str, Any]:
        """Task, method and, but for the aligned model, the rest of a `settings.Cell`."""
        cell: dict[str, Any] = self.content["cell"]
        return cell

    def pairs(self, kind: Kind) -> list[tuple[str, str]]:
        """Prompts of a kind with their answers."""
        answers = self.content["answers"][kind]
        return [(p.text, answer) for p, answer in zip(self.prompts.of(kind), answers, strict=True)]

    def share(self, verdict: Verdict, judge: str, kind: Kind, *styles: str) -> float:
        """The share of a verdict, from 0 to 1, among the prompts of a kind, or of some of its styles."""
        asked = zip(self.prompts.of(kind), self.verdicts[judge][kind], strict=True)
        found = [given == verdict for prompt, given in asked if not styles or prompt.style in styles]
        return sum(found) / len(found)


def judge_cells(folder: Path, judges: Sequence[Judge], split: Split = "heldout") -> list[Judged]:
    """Read the cells of a folder and judge their answers; verdicts that older cells hold are left alone.

    Args:
        folder: Of the results.
        judges: Each judges the answers of all cells at once, the same one to the same prompt only once.
        split: What was asked in cells that do not say it: older ones.

    Raises:
        ConfigError: There are no cells, one has not as many answers as prompts, or they were asked different ones.
    """
    cells = [_read(path, split) for path in sorted((folder / "cells").glob("*.json"))]
    if not cells:
        raise ConfigError(
            "no run has been made there",
            key="output",
            value=str(folder),
            remedy="Run `python -m benchmarks preservation` first.",
        )
    splits = {cell.content["split"] for cell in cells}
    if len(splits) > 1:
        raise ConfigError(
            f"its cells were asked different prompts: {', '.join(sorted(splits))}",
            key="output",
            value=str(folder),
            remedy="Keep runs with and without --development in folders of their own.",
        )
    for judge in judges:
        for kind in judge.kinds:
            distinct = list(dict.fromkeys(pair for cell in cells for pair in cell.pairs(kind)))
            given = judge([prompt for prompt, _ in distinct], [answer for _, answer in distinct])
            verdicts = dict(zip(distinct, given, strict=True))
            for cell in cells:
                of_judge = cell.verdicts.setdefault(judge.name, {})
                of_judge[kind] = [verdicts[pair] for pair in cell.pairs(kind)]
    return cells


def _read(path: Path, split: Split) -> Judged:
    content = {"split": split, **json.loads(path.read_text(encoding="utf-8"))}
    prompts = prompts_of(content["split"], content["sizes"]["prompts"])
    for kind in KINDS:
        answers, asked = len(content["answers"][kind]), len(prompts.of(kind))
        if answers != asked:
            raise ConfigError(
                f"{path} has {answers} answers to {asked} {kind} prompts",
                key="development",
                value=split == "development",
                remedy="Cells that do not say what they were asked need --development if they were run with it.",
            )
    return Judged(content, prompts)
