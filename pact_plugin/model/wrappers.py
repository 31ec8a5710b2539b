"""What a model is wrapped in, and how it runs for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

_REPACKS = "support_avx512bf16_for_cpu"
_NEFTUNE = "neftune_noise_alpha"
"""On the input embeddings: how strong the noise is that the hook of transformers, and of older TRL, adds to them."""


@contextmanager
def evaluation_mode(*models: Any) -> Iterator[None]:
    """No dropout inside; afterwards every module's training flag is as it was, also of those set one by one.

    Nor does bitsandbytes repack its 4-bit weights inside, as on some CPUs when they are first used in evaluation mode:
    the gradients of training are wrong from then on.
    """
    modules = [module for model in models for module in model.modules()]
    training = [module for module in modules if module.training]
    repacking = [module for module in modules if getattr(module, _REPACKS, False)]
    for module in training:
        module.training = False
    for module in repacking:
        setattr(module, _REPACKS, False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in repacking:
            setattr(module, _REPACKS, True)


@contextmanager
def without_noise(decoder: nn.Module) -> Iterator[None]:
    """NEFTune adds no noise to the embeddings inside; afterwards as much as before."""
    noisy = [(module, vars(module)[_NEFTUNE]) for module in decoder.modules() if vars(module).get(_NEFTUNE)]
    for module, _ in noisy:
        setattr(module, _NEFTUNE, 0.0)
    try:
        yield
    finally:
        for module, strength in noisy:
            setattr(module, _NEFTUNE, strength)


@contextmanager
def contiguous_input(module: nn.Module | None) -> Iterator[None]:
    """A linear module on the CPU is given contiguous input inside.

    Of a view, such as the last position's states, torch would copy a frozen weight once for every row: gigabytes for a
    language-model head.
    """
    weight = getattr(module, "weight", None)
    if module is None or not isinstance(weight, torch.Tensor) or weight.device.type != "cpu":
        yield
        return
    handle = module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_router_loss(model: Any) -> Iterator[None]:
    """A mixture of experts computes no load-balancing loss inside.

    TRL turns it on in the model's configuration, and transformers cannot compute it with a cache of earlier tokens.
    """
    text = text_config(model)
    if not getattr(text, "output_router_logits", False):
        yield
        return
    text.output_router_logits = False
    try:
        yield
    finally:
        text.output_router_logits = True


def text_config(model: Any) -> Any:
    """The configuration of a model, or of its language part where it sees as well; None where it has none."""
    config: Any = getattr(unwrap(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def unwrap(model: Any) -> Any:
    """The causal language model inside torch.compile, data-parallel, DeepSpeed and PEFT wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif wrapped(model) is not None:
            model = wrapped(model)
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def wrapped(model: Any) -> nn.Module | None:
    """What is inside a data-parallel wrapper or a DeepSpeed engine; None of anything else.

    An engine hands on the attributes of its model, but cannot be patched in its place.
    """
    inner = vars(model).get("module", getattr(model, "_modules", {}).get("module"))
    return inner if isinstance(inner, nn.Module) else None


def peft_model(model: nn.Module) -> Any:
    """The PEFT wrapper around or inside data-parallel wrappers, or None."""
    while not (hasattr(model, "disable_adapter") and hasattr(model, "peft_config")):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


@contextmanager
def adapter_off(peft: Any) -> Iterator[None]:
    """A PEFT model without its adapters inside; afterwards it trains what it trained before.

    PEFT itself leaves every parameter of the active adapters in training, also one that had been frozen.

    Args:
        peft: What `peft_model` found.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in peft.parameters()]
    try:
        with peft.disable_adapter():
            yield
    finally:
        for parameter, flag in trained:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def is_compiled(model: Any) -> bool:
    """Whether `torch.compile` is among a model's wrappers, or was applied in place."""
    while isinstance(model, nn.Module):
        if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
            return True
        model = getattr(model, "module", None)
    return False


def ambient_autocast(device: torch.device, *, cached: bool = True) -> AbstractContextManager[Any]:
    """The precision that operations on a device run in here, to run others in it elsewhere.

    Args:
        device: The device.
        cached: Whether weights that are cast inside stay cast until the outermost autocast ends. In older releases of
            torch, one that is first cast without gradient has none later.
    """
    kind = device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=None if cached else False
    )


def in_type_of(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """States in the type of a module's weight, unless autocast is on and casts by itself.

    Autocast leaves a layer norm's output in float32, and casts it for the bfloat16 head that comes next.

    Args:
        module: A linear layer, or what wraps one.
        states: In a type of floating-point numbers.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dtype == states.dtype or not weight.is_floating_point():
        return states
    return states if torch.is_autocast_enabled(states.device.type) else states.to(weight.dtype)
