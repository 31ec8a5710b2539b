"""Which tokens may be safety tokens: a tokenizer's own, but no special ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float

from pact_plugin.data.generation import device_of, special_ids
from pact_plugin.errors import ConfigError


def only(
    allowed: Bool[torch.Tensor, " V"], logits: Iterable[Float[torch.Tensor, "R W"]]
) -> Iterator[Float[torch.Tensor, "R V"]]:
    """Logits over the vocabulary, where tokens that are not allowed have probability 0; V <= W."""
    for one in logits:
        yield one[:, : len(allowed)].masked_fill(~allowed.to(one.device), -torch.inf)


def ordinary_tokens(model: Any, base_model: Any, tokenizer: Any, top_k: int) -> Bool[torch.Tensor, " V"]:
    """Which ids may be chosen: those that the tokenizer has, without its special tokens.

    Args:
        model: The aligned model.
        base_model: The one before alignment, or None.
        tokenizer: Of both.
        top_k: How many will be chosen.

    Raises:
        ConfigError: A model has no logit for one of them, or `top_k` is out of range.
    """
    models = {"model": model} if base_model is None else {"model": model, "base_model": base_model}
    ids = sorted(set(tokenizer.get_vocab().values()) - special_ids(tokenizer))
    sizes = {key: _logit_count(each) for key, each in models.items()}
    for key, size in sizes.items():
        if ids[-1] >= size:
            raise ConfigError(
                f"it has {size} logits, but the tokenizer has token id {ids[-1]}",
                key=key,
                value=model_name(models[key]),
                remedy="Give a model of this tokenizer's vocabulary.",
            )
    if not 2 <= top_k <= len(ids):
        remedy = f"It must be from 2 to the number of the tokenizer's ordinary tokens, {len(ids)}."
        raise ConfigError("out of range", key="top_k", value=top_k, remedy=remedy)
    allowed = torch.zeros(min(sizes.values()), dtype=torch.bool)
    allowed[ids] = True
    return allowed


def _logit_count(model: Any) -> int:
    return int(model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device_of(model))).logits.shape[-1])


def model_name(model: Any) -> str:
    """Path or hub id where it has one, else its class."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
