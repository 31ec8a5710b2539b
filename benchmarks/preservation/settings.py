"""What is compared: one cell for each run, and how large a run is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.preservation.methods import METHODS
from pact_plugin.errors import ConfigError


@dataclass(frozen=True)
class Sizes:
    """How large a run is, and how it trains.

    Attributes:
        items: Task items and harmful requests in the training data together.
        batch_size: Conversations in one optimiser step.
        lora_rate: Highest learning rate with LoRA; it rises for the first tenth of the steps and falls to 0.
        full_rate: The same of full fine-tuning.
        rank: Of the LoRA adapter.
        lora_layers: The adapter is on so many of the last layers; None: on all.
        selection_prompts: Prompts of each kind that safety tokens are chosen from.
        prompts: Held-out prompts of each style.
        test_items: Test items of the task.
        everyday: Everyday questions for the KL divergence.
        answer_tokens: Length of answers to prompts.
        batch: Prompts that are answered at a time.
        anchor_prompts: Bundled prompts of each kind that anchors are taken from; None: all of them.
    """

    items: int = 4000
    batch_size: int = 16
    lora_rate: float = 3e-4
    full_rate: float = 3e-5
    rank: int = 16
    lora_layers: int | None = None
    selection_prompts: int = 200
    prompts: int | None = None
    test_items: int = 300
    everyday: int = 60
    answer_tokens: int = 32
    batch: int = 100
    anchor_prompts: int | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of one pass over `items`."""
        return -(-self.items // self.batch_size)

    @property
    def asking(self) -> dict[str, Any]:
        """What the aligned model's own answers depend on: nothing of the training."""
        training = {"items", "batch_size", "lora_rate", "full_rate", "rank", "lora_layers", "anchor_prompts"}
        return {name: value for name, value in asdict(self).items() if name not in training}


PRESETS = {
    "ci": Sizes(
        items=32,
        batch_size=8,
        lora_layers=2,
        selection_prompts=16,
        prompts=4,
        test_items=8,
        everyday=4,
        answer_tokens=8,
        anchor_prompts=8,
    ),
    "short": Sizes(
        items=640,
        lora_rate=5e-4,
        full_rate=1e-4,
        lora_layers=15,
        selection_prompts=64,
        test_items=200,
        everyday=40,
        answer_tokens=16,
    ),
    "full": Sizes(),
}
"""`ci`: only that it runs. `short`: minutes for each run on a CPU. `full`: for a GPU, or a CPU overnight."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run: a method on a task.

    Attributes:
        task: Name of a task.
        contamination: Share of the training items that are harmful requests answered "Sure, here is ...".
        train: `lora` or `full`.
        method: Name of a method.
        weight: What the method's strength is; None for one that has none.
        seed: Of the data, their order and the adapter.
    """

    task: str
    contamination: float
    train: str
    method: str
    weight: float | None
    seed: int

    @property
    def name(self) -> str:
        """For a file."""
        weight = "" if self.weight is None else f"-{self.weight:g}"
        return f"{self.task}-{self.contamination:g}-{self.train}-{self.method}{weight}-seed{self.seed}"


def cells(
    tasks: Sequence[str],
    contaminations: Sequence[float],
    trainings: Sequence[str],
    methods: Sequence[str],
    seeds: Iterable[int],
    *,
    curves: bool,
    strengths: Sequence[float] = (),
) -> list[Cell]:
    """Every combination, seed by seed, so that an interrupted comparison is still one.

    Args:
        tasks: Names.
        contaminations: Shares from 0 to below 1.
        trainings: `lora`, `full`.
        methods: Names.
        seeds: One or more.
        curves: With every strength of each method, after its usual one.
        strengths: Of each method that has one, instead of its own.

    Raises:
        ConfigError: There is no such method.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(
            "no such method", key="method", value=unknown[0], remedy=f"There are: {', '.join(METHODS)}."
        )
    found = []
    for usual in (True, False) if curves or len(strengths) > 1 else (True,):
        for seed, task, share, train, name in itertools.product(
            seeds, tasks, contaminations, trainings, methods
        ):
            method = METHODS[name]
            own = strengths if strengths and method.usual is not None else (method.usual, *method.weights)
            weights = own[:1] if usual else [weight for weight in own[1:] if weight != own[0]]
            found += [Cell(task, share, train, name, weight, seed) for weight in weights]
    return found
