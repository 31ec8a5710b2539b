"""Supervised fine-tuning of a new LoRA adapter with TRL's SFTTrainer, with or without PACT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from examples.demo.prompts import Example
from pact_plugin.data.generation import Done

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    Attributes:
        learning_rate: Of AdamW, at its highest; it rises for 5 steps and falls to 0.
        rank: Of the LoRA adapter.
        batch_size: Conversations in one optimiser step.
        epochs: Passes over the examples.
        seed: Of their order and of the adapter.
        layers: Where the adapter is; None for all.
        sampling: `random`, or `group_by_length` for less padding.
    """

    learning_rate: float
    rank: int
    batch_size: int = 16
    epochs: int = 1
    seed: int = 0
    layers: Sequence[int] | None = None
    sampling: str = "random"

    def steps(self, examples: int) -> int:
        """Optimiser steps over a number of examples."""
        return self.epochs * -(-examples // self.batch_size)


class StepCallback(TrainerCallback):
    """Reports every optimiser step."""

    def __init__(self, report: Done) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback.on_step_end`."""
        self.report(state.global_step)


def make_trainer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    output: Path,
    report: Done,
    recipe: Recipe,
) -> SFTTrainer:
    """An SFTTrainer for a fresh LoRA adapter on the linear layers of ``model``, trained on the answers only."""
    arguments = SFTConfig(
        output_dir=str(output),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=5,
        train_sampling_strategy=recipe.sampling,
        completion_only_loss=True,
        gradient_checkpointing=False,  # the model is small: speed matters more than memory
        bf16=False,
        use_cpu=model.device.type == "cpu",
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=recipe.seed,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(examples)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            target_modules=LINEAR_LAYERS,
            layers_to_transform=None if recipe.layers is None else list(recipe.layers),
            task_type="CAUSAL_LM",
        ),
        callbacks=[StepCallback(report)],
    )
    trainer.remove_callback(PrinterCallback)  # the bars tell the progress
    return trainer
