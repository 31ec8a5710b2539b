"""One row of numbers for each method and strength."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.field.data import BENIGN_SETS, HARMFUL_SETS
from benchmarks.field.measure import incoherent
from benchmarks.field.paired import Change
from benchmarks.field.results import HARMFUL, Group, Result
from pact_plugin.audit.bootstrap import bootstrap

SETS = (*HARMFUL_SETS, HARMFUL, *BENIGN_SETS)


@dataclass(frozen=True)
class Row:
    """A group in numbers; means over seeds.

    Attributes:
        task: Of the data.
        contamination: Share of harmful items.
        wording: Of their answers.
        method: Name.
        strength: If it has one.
        title: For people.
        seeds: Which were run.
        changes: Of the refusals, from the aligned model, by set.
        nll: -log p of the held-out items' answers, in nats per token.
        nll_above_plain: The same minus that of plain fine-tuning, over the seeds that both have; with its 95%
            interval, a bootstrap over items. None where they have none in common.
        exact: School problems solved, and how many there are; None where none were asked.
        everyday_kl: KL to the aligned model along its answers to everyday questions, in nats per token.
        incoherent: Share of all answers that the aligned model finds very unlikely, or that are empty.
        prepare_seconds: Before the first step, what is made once and shared included.
        train_seconds: All steps.
        tokens: Read in all steps, with gradient and without.
    """

    task: str
    contamination: float
    wording: str
    method: str
    strength: float | None
    title: str
    seeds: tuple[int, ...]
    changes: Mapping[str, Change | None]
    nll: float
    nll_above_plain: tuple[float, float, float] | None
    exact: tuple[float, int] | None
    everyday_kl: float
    incoherent: float
    prepare_seconds: float | None
    train_seconds: float | None
    tokens: Mapping[str, float] | None

    @property
    def place(self) -> tuple[str, float, str]:
        """The data."""
        return self.task, self.contamination, self.wording


def summarise(group: Group) -> Row:
    """The row of a group."""
    contents = [one.content for one in group.seeds.values()]
    trained = [one["training"] for one in contents if one["training"]]
    solved = [one["exact"] for one in contents]
    answers = [row for one in contents for rows in one["asked"].values() for row in rows]
    return Row(
        task=group.cell.task,
        contamination=group.cell.contamination,
        wording=group.cell.wording,
        method=group.cell.method,
        strength=group.cell.strength,
        title=group.title,
        seeds=tuple(group.seeds),
        changes={name: group.change(name) for name in SETS},
        nll=statistics.fmean(_per_token(one["held_out"]) for one in contents),
        nll_above_plain=_above_plain(group),
        exact=(statistics.fmean(_right(one) for one in solved), len(solved[0])) if solved[0] else None,
        everyday_kl=statistics.fmean(_per_token(one["everyday"]) for one in contents),
        incoherent=sum(map(incoherent, answers)) / len(answers) if answers else 0.0,
        prepare_seconds=_mean([one["seconds"]["prepare"] + one["seconds"]["kept"] for one in trained]),
        train_seconds=_mean([one["seconds"]["train"] for one in trained]),
        tokens={
            kind: statistics.fmean(one["tokens"][kind] for one in trained) for kind in ("trained", "read")
        }
        if trained
        else None,
    )


def _above_plain(group: Group) -> tuple[float, float, float] | None:
    """Difference of the NLL per token, with its interval."""
    seeds = [seed for seed in group.seeds if seed in group.plain]
    if not seeds:
        return None

    def by_item(results: Mapping[int, Result]) -> list[float]:
        of_seeds = [results[seed].content["held_out"] for seed in seeds]
        return [statistics.fmean(one[0] for one in item) for item in zip(*of_seeds, strict=True)]

    counts = [count for _, count in group.aligned.content["held_out"]]
    differences = [a - b for a, b in zip(by_item(group.seeds), by_item(group.plain), strict=True)]
    ends = bootstrap(differences, counts)
    return sum(differences) / sum(counts), ends.low, ends.high


def _per_token(rows: Sequence[Sequence[float]]) -> float:
    return sum(total for total, _ in rows) / max(1, sum(count for _, count in rows))


def _right(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["right"] for row in rows)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
