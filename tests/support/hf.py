"""Small runs of the plain `transformers.Trainer`, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from sft import TOKENIZER, completions, lora
from tiny import tiny_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments


def tokenized(rows: int | Dataset = 16) -> Dataset:
    """`input_ids` and `labels` of conversations, so many of `completions` or those given; the prompts are masked."""

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt = TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = TOKENIZER.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}

    data = completions(rows) if isinstance(rows, int) else rows
    return data.map(encode, remove_columns=["prompt", "completion"])


def adapted(model: Any = None, **settings: Any) -> Any:
    """A tiny model with a LoRA adapter that changes nothing yet."""
    torch.manual_seed(0)
    return get_peft_model(tiny_model() if model is None else model, lora(**settings))


def hf_trainer(
    output: Any,
    *,
    model: Any = None,
    data: Dataset | None = None,
    trainer_class: type = Trainer,
    arguments_class: type = TrainingArguments,
    trainer_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A Trainer on the CPU that logs every step; `settings` go to `arguments_class`."""
    defaults: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    data = tokenized() if data is None else data
    return trainer_class(
        model=tiny_model() if model is None else model,
        args=arguments_class(**(defaults | settings)),
        train_dataset=data,
        eval_dataset=data,
        processing_class=TOKENIZER,
        data_collator=DataCollatorForSeq2Seq(TOKENIZER),
        **(trainer_settings or {}),
    )
