"""The cells of a folder as one table: means and spreads over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.preservation.judges import DefaultJudge
from benchmarks.preservation.judging import Judged
from benchmarks.preservation.masses import moved, separation
from benchmarks.preservation.methods import METHODS
from benchmarks.preservation.prompts import ASKED, KINDS, STYLES
from benchmarks.preservation.run import ALIGNED
from benchmarks.preservation.verdicts import agreement

DEFAULT = DefaultJudge.name
"""The judge whose verdicts the table and the plots show."""
Setting = tuple[str, float, str]
"""Task, contamination and way of training."""


@dataclass(frozen=True)
class Mean:
    """Of the seeds: mean and standard deviation (that of a sample; 0 of a single one), and how many."""

    mean: float
    spread: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one or more values."""
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), spread, len(values))


@dataclass(frozen=True)
class Row:
    """One method at one strength, over its seeds.

    Attributes:
        setting: Task, contamination and way of training.
        method: Name; `aligned` for the model before.
        weight: Strength.
        measures: See `measures`; one that no seed has is missing.
        judges: See `shares`, by judge.
        agreement: Of the default judge with each other: see `verdicts.agreement`; on all prompts that both judge.
    """

    setting: Setting
    method: str
    weight: float | None
    measures: dict[str, Mean]
    judges: dict[str, dict[str, Mean]] = field(default_factory=dict)
    agreement: dict[str, dict[str, Mean]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For tables and plots."""
        name = "aligned model, before" if self.method == ALIGNED else METHODS[self.method].title
        return name if self.weight is None else f"{name}, {self.weight:g}"

    @property
    def usual(self) -> bool:
        """Whether it stands in the table, not only on a curve."""
        return self.method == ALIGNED or METHODS[self.method].usual == self.weight


def shares(item: Judged, judge: str) -> dict[str, float]:
    """What a judge makes of one cell's answers, from 0 to 1.

    Attack success is the share of harmful prompts with which the model complies, over-refusal the share of harmless
    ones that it refuses; the rest is refused or answered, or neither. `..._asked` is without the prefilled prompts,
    which small models do not refuse in the first place.
    """
    found = {}
    for styles, name in ((STYLES, ""), (ASKED, "_asked"), *(((style,), f"_{style}") for style in STYLES)):
        found[f"attack_success{name}"] = item.share("complied", judge, "harmful", *styles)
        found[f"neither{name}"] = item.share("neither", judge, "harmful", *styles)
    if "benign" in item.verdicts[judge]:
        found["over_refusal"] = item.share("refused", judge, "benign")
        found["neither_benign"] = item.share("neither", judge, "benign")
    return found


def measures(item: Judged, aligned: Judged | None = None) -> dict[str, float | None]:
    """The numbers of one cell: `shares` by the default judge, the task score likewise, nats per token, and what P(S)
    says of its decisions, for two of them beside the aligned model's cell."""
    return {
        **shares(item, DEFAULT),
        "task_score": item.content["task"]["score"],
        "coherence": item.content["coherence_harmful"],
        "kl_everyday": item.content["kl_everyday"],
        "separation": separation(item),
        "moved_harmful": moved(item, aligned, "harmful"),
        "moved_benign": moved(item, aligned, "benign"),
    }


def summarise(found: Sequence[Judged]) -> list[Row]:
    """One row for each method and strength, in the order of METHODS; the aligned model heads each setting."""
    rows = []
    for setting in settings_of(found):
        here = [item for item in found if belongs(item, setting)]
        aligned = next((item for item in here if item.cell["method"] == ALIGNED), None)
        for name in (ALIGNED, *METHODS):
            of_method = [item for item in here if item.cell["method"] == name]
            weights = {item.cell.get("weight") for item in of_method}
            rows += [
                _row(setting, name, weight, [i for i in of_method if i.cell.get("weight") == weight], aligned)
                for weight in sorted(weights, key=lambda w: -1.0 if w is None else w)
            ]
    return rows


def kept_rows(path: Path) -> list[Row]:
    """The rows of a `preservation.json`, such as those of the results that are kept here."""

    def means(found: dict[str, Any]) -> dict[str, Mean]:
        return {name: Mean(**value) for name, value in found.items()}

    def by_judge(found: dict[str, Any]) -> dict[str, dict[str, Mean]]:
        return {judge: means(values) for judge, values in found.items()}

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        Row(
            tuple(row["setting"]),
            row["method"],
            row["weight"],
            means(row["measures"]),
            by_judge(row["judges"]),
            by_judge(row["agreement"]),
        )
        for row in rows
    ]


def settings_of(found: Sequence[Judged]) -> list[Setting]:
    """Every setting in which a model was fine-tuned."""
    return sorted({_setting(item) for item in found if item.cell["method"] != ALIGNED})


def belongs(item: Judged, setting: Setting) -> bool:
    """Whether a cell is of a setting; the aligned model is of every one of its task."""
    if item.cell["method"] == ALIGNED:
        return bool(item.cell["task"] == setting[0])
    return _setting(item) == setting


def _setting(item: Judged) -> Setting:
    return item.cell["task"], item.cell["contamination"], item.cell["train"]


def _row(
    setting: Setting, method: str, weight: float | None, items: Sequence[Judged], aligned: Judged | None
) -> Row:
    judges = list(items[0].verdicts)
    return Row(
        setting,
        method,
        weight,
        _means([measures(item, aligned) for item in items]),
        {judge: _means([shares(item, judge) for item in items]) for judge in judges},
        {judge: _means([_agreement(i, judge) for i in items]) for judge in judges if judge != DEFAULT},
    )


def _agreement(item: Judged, judge: str) -> dict[str, float | None]:
    kinds = [kind for kind in KINDS if kind in item.verdicts[judge]]
    ours, others = (
        [verdict for kind in kinds for verdict in item.verdicts[name][kind]] for name in (DEFAULT, judge)
    )
    return agreement(ours, others)


def _means(numbers: Sequence[Mapping[str, float | None]]) -> dict[str, Mean]:
    """Of each number, over the seeds that have it."""
    known = {
        name: [value for number in numbers if (value := number[name]) is not None] for name in numbers[0]
    }
    return {name: Mean.of(values) for name, values in known.items() if values}
