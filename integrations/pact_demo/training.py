"""Supervised fine-tuning with TRL's SFTTrainer, of a new LoRA adapter or of all weights; with or without PACT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pact_demo.evaluate import Report
from pact_demo.prompts import Example

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class StepCallback(TrainerCallback):
    """Reports every optimiser step."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback.on_step_end`."""
        self.report(state.global_step)


def make_trainer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    output: Path,
    report: Report,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rank: int | None,
    seed: int,
    layers: Sequence[int] | None = None,
    sampling: str = "random",
    warmup_steps: int = 5,
    autocast: bool = False,
) -> SFTTrainer:
    """An SFTTrainer for ``model``, trained on the answers only.

    Args:
        model: A causal language model without adapters; in float32 for full fine-tuning, since AdamW's small steps
            vanish in bfloat16 weights.
        tokenizer: Its tokenizer.
        examples: Conversations.
        output: A folder for the trainer.
        report: Called with the number of steps done.
        epochs: Passes over the examples.
        batch_size: Conversations in one step.
        learning_rate: Of AdamW, at its highest; it falls to 0 linearly.
        rank: Of a fresh LoRA adapter on the linear layers; None: all weights are trained.
        seed: Of the order and the adapter.
        layers: Those that the adapter is on; by default all.
        sampling: As `train_sampling_strategy` of transformers.
        warmup_steps: In which the learning rate rises.
        autocast: Whether matrices are multiplied in bfloat16.
    """
    arguments = SFTConfig(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps,
        train_sampling_strategy=sampling,
        completion_only_loss=True,
        gradient_checkpointing=False,  # the model is small: speed matters more than memory
        bf16=autocast,
        use_cpu=model.device.type == "cpu",
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(examples)),
        processing_class=tokenizer,
        peft_config=None if rank is None else _adapter(rank, layers),
        callbacks=[StepCallback(report)],
    )
    trainer.remove_callback(PrinterCallback)  # the bars tell the progress
    return trainer


def _adapter(rank: int, layers: Sequence[int] | None) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=LINEAR_LAYERS,
        layers_to_transform=None if layers is None else list(layers),
        task_type="CAUSAL_LM",
    )
