"""The cells of a folder as one table: means and spreads over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.preservation.methods import METHODS
from benchmarks.preservation.prompts import STYLES
from benchmarks.preservation.run import ALIGNED

KEYWORDS = "keyword"
"""The judge whose verdicts the plots show."""
STYLE_MEASURES = tuple(f"attack_success_{style}" for style in STYLES)
MEASURES = (
    "attack_success",
    "attack_success_asked",
    *STYLE_MEASURES,
    "over_refusal",
    "task_score",
    "coherence",
    "kl_everyday",
)


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
        measures: By name; one that no seed has is missing.
        judges: Attack success and over-refusal by judge.
        agreement: Share of equal verdicts of the keyword judge and each other, on all prompts.
    """

    setting: tuple[str, float, str]
    method: str
    weight: float | None
    measures: dict[str, Mean]
    judges: dict[str, dict[str, Mean]] = field(default_factory=dict)
    agreement: dict[str, Mean] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For tables and plots."""
        name = "aligned model, before" if self.method == ALIGNED else METHODS[self.method].title
        return name if self.weight is None else f"{name}, {self.weight:g}"

    @property
    def usual(self) -> bool:
        """Whether it stands in the table, not only on a curve."""
        return self.method == ALIGNED or METHODS[self.method].usual == self.weight


def load(folder: Path) -> list[dict[str, Any]]:
    """What is there of the cells of a folder."""
    paths = sorted((folder / "cells").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def measures(found: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of one cell by the keyword judge, shares from 0 to 1, nats per token.

    `attack_success_asked` is without the prefilled prompts, which small models do not refuse in the first place.
    """
    harmful = found["rates"]["harmful"][KEYWORDS]
    return {
        "attack_success": 1 - harmful["all"],
        "attack_success_asked": 1 - (harmful["direct"] + harmful["roleplay"]) / 2,
        **{f"attack_success_{style}": 1 - harmful[style] for style in STYLES},
        "over_refusal": found["rates"]["benign"][KEYWORDS]["all"],
        "task_score": found["task"]["score"],
        "coherence": found["coherence_harmful"],
        "kl_everyday": found["kl_everyday"],
    }


def summarise(found: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each method and strength, in the order of METHODS; the aligned model heads each setting."""
    settings = sorted({_setting(item) for item in found if item["cell"]["method"] != ALIGNED})
    rows = []
    for setting in settings:
        before = [i for i in found if i["cell"]["method"] == ALIGNED and i["cell"]["task"] == setting[0]]
        if before:
            rows.append(_row(setting, ALIGNED, None, before))
        for name in METHODS:
            here = [i for i in found if i["cell"]["method"] == name and _setting(i) == setting]
            weights = sorted({i["cell"]["weight"] for i in here}, key=lambda w: -1.0 if w is None else w)
            rows += [
                _row(setting, name, weight, [i for i in here if i["cell"]["weight"] == weight])
                for weight in weights
            ]
    return rows


def belongs(item: dict[str, Any], setting: tuple[str, float, str]) -> bool:
    """Whether a cell is of a setting; the aligned model is of every one of its task."""
    if item["cell"]["method"] == ALIGNED:
        return bool(item["cell"]["task"] == setting[0])
    return _setting(item) == setting


def _setting(item: dict[str, Any]) -> tuple[str, float, str]:
    cell = item["cell"]
    return cell["task"], cell.get("contamination", 0.0), cell.get("train", "")


def _row(
    setting: tuple[str, float, str], method: str, weight: float | None, items: Sequence[dict[str, Any]]
) -> Row:
    numbers = [measures(item) for item in items]
    means = {name: _mean(number[name] for number in numbers) for name in MEASURES}
    names = list(items[0]["rates"]["harmful"])
    judges = {
        judge: {
            "attack_success": Mean.of([1 - i["rates"]["harmful"][judge]["all"] for i in items]),
            "over_refusal": Mean.of([i["rates"]["benign"][judge]["all"] for i in items]),
        }
        for judge in names
    }
    agreement = {
        judge: Mean.of([_agreement(i, judge) for i in items]) for judge in names if judge != KEYWORDS
    }
    return Row(setting, method, weight, {k: m for k, m in means.items() if m}, judges, agreement)


def _agreement(item: dict[str, Any], judge: str) -> float:
    pairs = [
        pair
        for kind in ("harmful", "benign")
        for pair in zip(item["refused"][kind][KEYWORDS], item["refused"][kind][judge], strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def _mean(values: Iterable[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    return Mean.of(known) if known else None
