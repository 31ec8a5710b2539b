"""How a model is taught to refuse: the demo's adapter, and full fine-tuning for a stronger start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What `align` trains on, and how: the names of its arguments.

    Attributes:
        rank: Of a new LoRA adapter; None: full fine-tuning, in float32 weights.
        framed: Whether half of the harmful prompts and a third of the harmless ones are asked again in a role-play.
        epochs: Passes over the examples.
        batch_size: Examples in one optimiser step.
        learning_rate: Of AdamW, at its highest; it falls to 0 linearly.
        warmup_steps: Steps in which it rises.
    """

    rank: int | None
    framed: bool
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int


ADAPTER = Recipe(rank=8, framed=False, epochs=4, batch_size=16, learning_rate=1e-3, warmup_steps=5)
"""That of the adapter that the demo ships."""
FULL = Recipe(rank=None, framed=True, epochs=3, batch_size=32, learning_rate=5e-5, warmup_steps=10)
"""Full fine-tuning, which refuses more, also in a role-play, and over-refuses less."""
