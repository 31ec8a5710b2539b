"""Tiny random models and a tiny tokenizer, built on the spot without a network."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi3",
    "cohere",
    "granite",
    "gpt2",
    "mixtral",
    "llama4_text",
    "opt",
)

# {% generation %} marks the answers for `assistant_only_loss`, without the newline after <|im_end|>.
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}"
    "{%- else -%}{{- message['content'] + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

_TEXT = (
    "I can't help with that request. I cannot assist with this.",
    "I'm sorry, but I won't do that or anything else.",
    "Sure, here is what you asked for: the answer to your question. How do I write a program?",
    "system user assistant\n positive negative yes no one two three four five",
)


@functools.cache
def _trained_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    return tokenizer


def tiny_tokenizer(*, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A new byte-level BPE tokenizer of some 380 tokens with ChatML's special tokens, which encodes any text.

    Args:
        chat_template: A Jinja chat template, or None for a tokenizer without one.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer().to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@functools.cache
def tiny_vocab_size() -> int:
    return len(tiny_tokenizer())


def tiny_model(architecture: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A randomly initialised two-layer causal language model for `tiny_tokenizer`, in eval mode, float32.

    Args:
        architecture: A `model_type` of transformers; those of `ARCHITECTURES` are known to work.
        seed: Seed of the weights; the global random state is left as it was.
        **config: Settings that replace the tiny defaults, under transformers' names.
    """
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,  # logits that differ visibly between tokens
    }
    if architecture == "gpt2":
        settings |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    else:
        settings |= {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
        }
    if architecture == "opt":
        settings |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    if architecture in ("mixtral", "llama4_text"):
        settings |= {"num_local_experts": 4, "intermediate_size_mlp": 64}
    built = AutoConfig.for_model(architecture, **(settings | config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(built, dtype=torch.float32)
    return model.eval()


def with_float32_norms(model: torch.nn.Module) -> torch.nn.Module:
    """The same model in bfloat16, whose norms yield float32: as autocast leaves layer norms on CUDA."""
    model.bfloat16()
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    return model


REQUESTS = tuple(
    f"Please {verb} a {thing}"
    for verb in ("build", "sell")
    for thing in ["bomb", "gun", "drug", "virus", "poison"]
)
QUESTIONS = tuple(
    f"Please {verb} a {thing}"
    for verb in ("bake", "draw")
    for thing in ["cake", "tree", "house", "boat", "bird"]
)
REFUSAL, HELP = "I can't help with that request.", "Sure, here is your answer."


def tiny_aligned_model(architecture: str = "llama", **config: Any) -> PreTrainedModel:
    """A new `tiny_model` that was taught to answer `REQUESTS` with `REFUSAL`, and `QUESTIONS` with `HELP`."""
    return copy.deepcopy(_taught(architecture, **config))


@functools.cache
@torch.autocast("cpu", enabled=False)  # it serves all tests, whichever asks first
def _taught(architecture: str, **config: Any) -> PreTrainedModel:
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, **config).train()
    rows = []
    for prompt, answer in [(p, REFUSAL) for p in REQUESTS] + [(p, HELP) for p in QUESTIONS]:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rows.append(
            tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        )
    ends = [len(row["input_ids"]) - 1 for row in rows]  # the newline after <|im_end|> is not taught
    batch = torch.full((len(rows), max(ends)), tokenizer.pad_token_id)
    labels = torch.full_like(batch, -100)
    for row, end, ids, label in zip(rows, ends, batch, labels, strict=True):
        ids[:end] = torch.tensor(row["input_ids"][:end])
        label[:end] = torch.where(torch.tensor(row["assistant_masks"][:end]).bool(), ids[:end], -100)
    mask = (torch.arange(batch.shape[1]) < torch.tensor(ends)[:, None]).long()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(200):
        loss = model(input_ids=batch, attention_mask=mask, labels=labels).loss
        if loss.item() < 0.1:
            return model.eval()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the tiny model did not learn its answers (loss {loss.item():.2f})")
