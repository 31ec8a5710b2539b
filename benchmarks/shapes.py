"""Llama shapes with random weights, tokenizers of their vocabulary, and rows of random tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pact_plugin import SafetyTokens
from pact_plugin.data.prompts import for_pool


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model, and the batch that it is measured with."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    batch: int
    """Rows of a micro-batch."""
    length: int
    """Tokens of a row."""

    @property
    def settings(self) -> dict[str, Any]:
        """As LlamaConfig names them."""
        sizes = asdict(self)
        return {name: sizes[name] for name in sizes if name not in ("batch", "length")}


SHAPES = {
    "tiny": Shape(128, 384, 2, 4, 2, 4096, True, batch=4, length=64),
    "growth": Shape(256, 768, 2, 4, 2, 32_000, True, batch=4, length=256),
    "135m": Shape(576, 1536, 30, 9, 3, 49_152, True, batch=2, length=256),  # SmolLM2
    "1b": Shape(2048, 8192, 16, 32, 8, 128_256, True, batch=8, length=512),  # Llama 3.2
    "8b": Shape(4096, 14336, 32, 32, 8, 128_256, False, batch=4, length=1024),  # Llama 3.1
}
"""`growth` is what one size at a time is changed of; the others are the models that people train."""


def build_model(shape: Shape, *, dtype: torch.dtype, device: str, seed: int = 0) -> Any:
    """A Llama of this shape with random weights, built where it will train."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape.settings, max_position_embeddings=16_384, use_cache=False)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return LlamaForCausalLM._from_config(config, dtype=dtype)


def lora(model: Any, rank: int) -> Any:
    """The model with a LoRA adapter on all linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def build_tokenizer(vocab_size: int) -> Any:
    """A tokenizer of `vocab_size` words, one token each, first those of the prompts that the aligned model is asked."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    asked = dict.fromkeys(word for one in for_pool().prompts for word in one.prompt.split())
    spelt = ["w0", "w1", *asked][:vocab_size]
    spelt += [f"w{i}" for i in range(len(spelt), vocab_size)]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(spelt)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0", eos_token="w1")


def safety_tokens(tokenizer: Any, count: int) -> SafetyTokens:
    """As many safety tokens, spread over the vocabulary, all of positive weight."""
    step = len(tokenizer) // (count + 1)
    return SafetyTokens.for_tokenizer(tokenizer, [step * (i + 1) for i in range(count)], [1.0] * count)


def random_rows(rows: int, length: int, response_share: float, vocab_size: int, seed: int = 0) -> Any:
    """Rows of random tokens, of which the last are the response."""
    from datasets import Dataset

    ids = torch.randint(2, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : length - response_length(length, response_share)] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def response_length(length: int, share: float) -> int:
    """Tokens of a row that are trained on."""
    return max(round(length * share), 1)
