"""What a model's PEFT adapter is before training, by trying it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from pact_plugin.errors import ReferenceModelError
from pact_plugin.model.adapters import trained_beside
from pact_plugin.model.head import language_head
from pact_plugin.model.ranks import require_weights
from pact_plugin.model.wrappers import adapter_off, peft_model
from pact_plugin.reference.source import AdapterState, Source

_TRIED = 16
"""Token ids on which an adapter is tried."""

_ROUNDINGS = 16
"""Times the rounding of its types that a new DoRA may move a model: it divides by norms and multiplies with them."""


def adapter_state(model: nn.Module) -> AdapterState:
    """What a model's PEFT adapter is before training.

    Args:
        model: The model to be trained; its adapter is tried on and off.

    Returns:
        `new`: without it the model is and stays the aligned one; `beside`: it is, but weights beside the adapter are
        trained; `trained`: it is not; `none`: there is no adapter.

    Raises:
        ReferenceModelError: The adapter prepends virtual tokens, or this rank has no weights yet.
    """
    peft = peft_model(model)
    if peft is None:
        return "none"
    if any(getattr(config, "is_prompt_learning", False) for config in peft.peft_config.values()):
        raise ReferenceModelError(
            "prompt-learning adapters prepend virtual tokens, which the reference would not see",
            key="adapter",
            remedy="Use a LoRA-like adapter.",
        )
    require_weights(model)
    head = language_head(model)
    tried = torch.arange(_TRIED, device=head.device)
    seen = []
    for scope in (nullcontext, partial(adapter_off, peft)):
        source = Source("adapter_off", model, head, scope=scope)
        with source.session():
            hidden = source.hidden((), {"input_ids": tried[None]})
            seen.append((hidden, source.project(hidden[0])))
    pairs = list(zip(*seen, strict=True))
    same = all(torch.equal(a, b) for a, b in pairs)
    if not same and _is_new_dora(peft):
        kinds = {t.dtype for t in (*model.parameters(), *seen[0]) if t.is_floating_point()}
        rounding = _ROUNDINGS * max(torch.finfo(kind).eps for kind in kinds)
        same = all((a.float() - b.float()).norm() <= rounding * b.float().norm() for a, b in pairs)
    if not same:
        return "trained"
    return "beside" if trained_beside(peft) else "new"


def _is_new_dora(peft: Any) -> bool:
    """Whether the active adapters are LoRA whose product is zero, and any is DoRA, which rounds even then."""
    active = set(peft.active_adapters)
    products = [
        parameter
        for name, parameter in peft.named_parameters()
        if {"lora_B", "lora_embedding_B"} & set(name.split(".")) and active & set(name.split("."))
    ]
    dora = any(getattr(peft.peft_config[name], "use_dora", False) for name in active)
    return dora and bool(products) and not any(bool(product.any()) for product in products)
