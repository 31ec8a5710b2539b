"""PEFT's adapters: which one a parameter belongs to, and which act where the decoder is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

_SAVED = {"modules_to_save", "prompt_encoder"}
_LISTS = ("adapter_layer_names", "other_param_names")
"""Attributes of a PEFT layer that list its containers, each with one entry for each adapter's name."""


def owner_by_name(peft: Any) -> Callable[[list[str]], str | None]:
    """What tells the adapter that a parameter or buffer belongs to, by the parts of its name; None for none.

    An adapter may be named as a module of the model is, such as `model`; so what comes before its name counts, too.

    Args:
        peft: What `peft_model` found, or None.
    """
    adapters = set() if peft is None else set(peft.peft_config)
    modules = () if peft is None else peft.modules()
    named = {name for module in modules for names in _LISTS for name in getattr(module, names, ())}
    containers = _SAVED | {name.rpartition(".")[2] for name in named}

    def owner(parts: list[str]) -> str | None:
        pairs = pairwise(parts)
        return next((part for place, part in pairs if place in containers and part in adapters), None)

    return owner


def not_in_decoder(config: Any) -> str | None:
    """Why an adapter acts in PEFT's own forward pass alone, so that a decoder read by itself lacks it; None if not so.

    Args:
        config: A PEFT configuration.
    """
    if getattr(config, "is_prompt_learning", False):
        return "an adapter of virtual tokens"
    if getattr(config, "alora_invocation_tokens", None):
        return "an activated LoRA (`alora_invocation_tokens`)"
    return None


def trained_beside(peft: Any) -> int:
    """How many parameters outside of the adapters train, such as biases: they move the model without its adapter."""
    owner_of = owner_by_name(peft)
    return sum(
        parameter.requires_grad and owner_of(name.split(".")) is None
        for name, parameter in peft.named_parameters()
    )
