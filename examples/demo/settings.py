"""How large the demo's experiment is, and how it trains."""

from __future__ import annotations

from dataclasses import dataclass

from pact_plugin import PactConfig


@dataclass(frozen=True)
class Settings:
    """How large the experiment is, and how it trains.

    Attributes:
        task_items: Task items in the fine-tuning data.
        harmful_items: Harmful requests in it, answered "Sure, here is ...".
        batch_size: Conversations in one optimiser step.
        learning_rate: Of AdamW, at its highest; it rises for 5 steps and falls to 0.
        rank: Of the LoRA adapter.
        lora_layers: How many of the model's 30 layers, counted from the last, have the adapter.
        weight: Of the constraint.
        selection_prompts: Prompts of each kind that safety tokens are chosen from.
        prompts: Held-out prompts of each kind.
        test_items: Test items of the task.
    """

    task_items: int = 720
    harmful_items: int = 80
    batch_size: int = 16
    learning_rate: float = 3e-4
    rank: int = 16
    lora_layers: int = 15
    weight: float = PactConfig().weight
    selection_prompts: int = 64
    prompts: int = 100
    test_items: int = 200


FULL = Settings()
QUICK = Settings(
    task_items=216,
    harmful_items=24,
    learning_rate=1e-3,
    selection_prompts=16,
    prompts=16,
    test_items=40,
)
