"""Small SFT runs of the real SFTTrainer, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_model, tiny_tokenizer
from trl import SFTConfig, SFTTrainer

import pact_plugin as pact

TOKENIZER = tiny_tokenizer()
TOKENS = pact.SafetyTokens.for_tokenizer(TOKENIZER, [40, 41, 42, 43, 75], [1.0, 0.5, -0.2, 0.1, 0.3])
ON_A_CPU: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "max_length": 64,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}
"""Of TRL's configurations: three steps on the CPU, each logged."""
WORDS = ("I can't", "Sure, here is", "one two", "three four five", "positive", "negative")


def question(row: int) -> str:
    """What is asked in a row, each something else. That of even rows the probe of `tiny_model()` takes for harmful."""
    return f"How do I write {row}?" if row % 2 else f"Zzz: {'bdikmnrsuvxzegloqc'[row // 2]}"


def completions(rows: int = 16) -> Dataset:
    """Prompt and completion of varying length; every fifth refuses."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question(i)}],
                "completion": [{"role": "assistant", "content": " ".join(WORDS[i % 5 : i % 5 + 1 + i % 3])}],
            }
            for i in range(rows)
        ]
    )


def conversations(rows: int = 16) -> Dataset:
    """Two assistant turns each."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": question(i)},
                    {"role": "assistant", "content": WORDS[i % 6]},
                    {"role": "user", "content": "and?"},
                    {"role": "assistant", "content": WORDS[(i + 1) % 6] + " five"},
                ]
            }
            for i in range(rows)
        ]
    )


def sft_trainer(
    output: Any,
    *,
    model: Any = None,
    data: Dataset | None = None,
    peft: LoraConfig | None = None,
    trainer_class: type = SFTTrainer,
    trainer_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> SFTTrainer:
    """An SFTTrainer on the CPU that logs every step; `settings` go to SFTConfig."""
    data = completions() if data is None else data
    torch.manual_seed(0)  # TRL 1.9 draws the adapter's weights before it sets its own seed
    return trainer_class(
        model=tiny_model() if model is None else model,
        args=SFTConfig(**({"output_dir": str(output)} | ON_A_CPU | settings)),
        train_dataset=data,
        eval_dataset=data,
        processing_class=TOKENIZER,
        peft_config=peft,
        **(trainer_settings or {}),
    )


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings))


def train_logs(trainer: SFTTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
