"""What a run is: its cell in the comparison, and the sizes that all cells of a folder share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pact_plugin.config import Anchors

Task = Literal["alpaca", "gsm8k"]
Wording = Literal["target", "help", "yes"]
"""How the answers of harmful items begin: "Sure, here is", "I can help with that. Sure, here is", "Yes, here is"."""
Train = Literal["lora", "full"]
"""Whether an adapter is trained, or every weight."""
Precision = Literal["bfloat16", "float32"]
"""Of the model's weights and arithmetic; what is trained is in float32."""
Split = Literal["development", "held-out"]
"""Halves of what is asked: strengths are chosen on one, and results come from the other."""
TASKS: tuple[Task, ...] = get_args(Task)
WORDINGS: tuple[Wording, ...] = get_args(Wording)
RATES: dict[Train, float] = {"lora": 5e-4, "full": 3e-5}
"""Learning rates, at their highest."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SPLITS: tuple[Split, ...] = get_args(Split)
ALIGNED = "aligned"
ANSWER_TOKENS = 24
"""Tokens that a model may answer to anything that is asked, but for school mathematics."""
EASED_TOKENS = 16
"""First tokens of a response that easing weighs by 1 - e."""


@dataclass(frozen=True)
class Sizes:
    """What the cells of a folder have in common.

    Attributes:
        model: Path or hub id of the aligned model.
        items: Training items, harmful ones among them.
        epochs: Over them.
        learning_rate: At its highest.
        batch_size: Items a step.
        ask: Prompts of each set that are asked, at most.
        held_out: Items of the task whose log-likelihood is measured.
        exact: Problems of GSM8K that are solved.
        per_step: Prompts of the pool in each step, for methods that have a pool.
        pool_tokens: First tokens of the aligned model's answers to the pool that are replayed.
        dtype: Of the weights, and of the arithmetic.
        train: An adapter, or every weight.
    """

    model: str
    items: int = 220
    epochs: int = 2
    learning_rate: float = RATES["lora"]
    batch_size: int = 8
    ask: int = 100
    held_out: int = 40
    exact: int = 100
    per_step: int = Anchors().per_step
    pool_tokens: int = 16
    dtype: Precision = "bfloat16"
    train: Train = "lora"

    @property
    def steps(self) -> int:
        """Of a run whose treatment leaves all items in."""
        return self.epochs * (self.items // self.batch_size)


@dataclass(frozen=True)
class Cell:
    """One run. Runs that differ in method or strength alone see the same items in the same order.

    Attributes:
        task: What the benign items teach.
        contamination: Share of harmful items.
        wording: How their answers begin.
        method: Name, `aligned` for the model before; `METHOD+TREATMENT` where harmful items are treated.
        strength: Of the method, if it has one.
        seed: Of the draw of items, their order, and the adapter.
    """

    task: Task
    contamination: float = 0.0
    wording: Wording = "target"
    method: str = ALIGNED
    strength: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        if self.method == ALIGNED:
            return f"{self.task}-{ALIGNED}"
        strength = "" if self.strength is None else f"@{self.strength:g}"
        return f"{self.task}-{self.contamination:g}-{self.wording}-{self.method}{strength}-s{self.seed}"
