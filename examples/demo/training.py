"""Supervised fine-tuning of a new LoRA adapter with TRL's SFTTrainer, with or without PACT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from examples.demo.evaluate import Report
from examples.demo.prompts import Example

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
    rank: int,
    seed: int,
    layers: Sequence[int] | None = None,
    sampling: str = "random",
) -> SFTTrainer:
    """An SFTTrainer for a fresh LoRA adapter on the linear layers of ``model``, trained on the answers only."""
    arguments = SFTConfig(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=5,
        train_sampling_strategy=sampling,
        completion_only_loss=True,
        gradient_checkpointing=False,  # the model is small: speed matters more than memory
        bf16=False,
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
        peft_config=LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=LINEAR_LAYERS,
            layers_to_transform=None if layers is None else list(layers),
            task_type="CAUSAL_LM",
        ),
        callbacks=[StepCallback(report)],
    )
    trainer.remove_callback(PrinterCallback)  # the bars tell the progress
    return trainer
