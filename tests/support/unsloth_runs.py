"""Tiny models loaded by Unsloth's FastLanguageModel, and their plain twins. Import Unsloth before this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from tiny import tiny_model, tiny_tokenizer
from unsloth import FastLanguageModel

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": PROJECTIONS,
    "use_gradient_checkpointing": "unsloth",
}


def saved(folder: Path, architecture: str = "llama", **config: Any) -> Path:
    """A folder that holds a tiny model and its tokenizer."""
    if not (folder / "config.json").exists():
        tiny_model(architecture, **config).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, with_lora: bool, **settings: Any) -> Any:
    """A model as Unsloth's users load it; `settings` go to `from_pretrained`."""
    model, _ = FastLanguageModel.from_pretrained(
        str(folder),
        **{"max_seq_length": 64, "dtype": torch.float32, "load_in_4bit": False} | settings,
        full_finetuning=not with_lora,
    )
    return FastLanguageModel.get_peft_model(model, **LORA) if with_lora else model


def twin_of(model: Any, plain: Any) -> Any:
    """The same weights in a model that Unsloth has not touched."""
    if hasattr(model, "peft_config"):
        plain = get_peft_model(plain, model.peft_config["default"])
    plain.load_state_dict(model.state_dict())
    plain.requires_grad_(False)
    for name, parameter in model.named_parameters():
        plain.get_parameter(name).requires_grad_(parameter.requires_grad)
    return plain.eval()
