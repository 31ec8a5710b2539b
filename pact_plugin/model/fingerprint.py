"""What tells one model from another, its weights included."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pact_plugin.model.adapters import owner_by_name
from pact_plugin.model.ranks import require_weights
from pact_plugin.model.wrappers import peft_model, text_config

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PEFT = {"base_layer", "original_module", "token_adapter"}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**24
_FUNCTION = re.compile(
    "rope|rotary|window|layer_types|softcap|scal|multiplier|eps|hidden_act|per_tok|top_?k|heads|head_dim"
)
"""Names in a configuration that make another model of the same weights. A list, as trainers change many others, such as
`use_cache`, and each version of transformers adds some."""
_ROUNDING = ("weight_fake_quantizer", "activation_fake_quantizer")
"""On a layer: what rounds in its forward pass, in quantisation-aware training, and leaves the weights as they are."""


@dataclass(frozen=True)
class Fingerprint:
    """Of a model's parameters and saved buffers: SHA-256, in hexadecimal digits."""

    structure: str
    """Of their names, shapes and types, and of what the configuration makes of them."""
    values: str
    """Of every bit of them, too."""


def model_fingerprint(model: nn.Module, *, base_only: bool = False, any_type: bool = False) -> Fingerprint:
    """Fingerprint of a model, the same on every device, under every wrapper and for every shard.

    All values count, by a sum of 64-bit integers that does not depend on the order of summation: of parameters, and of
    buffers that are saved with them, as a quantised model's weights may be. With sharded parameters (DTensor) every
    rank must call it.

    Args:
        model: The model, with the adapters that are active.
        base_only: Leave the adapters out: they change nothing, and start at random.
        any_type: Compare floating-point values as float32, so that the same weights in bfloat16 and in float32 are the
            same model. Packed integers are compared as they are.

    Raises:
        ReferenceModelError: This rank has no weights yet.
    """
    require_weights(model)
    line = f"{_configured(model, base_only)}\n"
    structure, values = hashlib.sha256(line.encode()), hashlib.sha256(line.encode())
    for name, found in sorted(_named(model, base_only), key=lambda pair: pair[0]):
        tensor = found.detach()
        dtype = torch.float32 if any_type and tensor.is_floating_point() else tensor.dtype
        line = f"{name} {tuple(tensor.shape)} {dtype}\n"
        structure.update(line.encode())
        values.update(f"{line}{_checksum(tensor, dtype)}\n".encode())
    return Fingerprint(structure.hexdigest(), values.hexdigest())


def _configured(model: nn.Module, base_only: bool) -> str:
    """What beside the weights changes predictions, as JSON; such as the base of rotary positions."""
    config = text_config(model)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    found = {name: value for name, value in settings.items() if _FUNCTION.search(name)}
    if rounding := _rounding(model):
        found["fake_quantizers"] = rounding
    if not base_only and (scales := _scales(model)):
        found["adapters"] = scales
    return json.dumps(found, sort_keys=True, default=str)


def _rounding(model: nn.Module) -> list[str]:
    """The kinds of fake quantisation in a model that is prepared for quantisation-aware training."""
    kinds = set()
    for module in model.modules():
        for name in _ROUNDING:
            one = getattr(module, name, None)
            if one is not None and getattr(one, "enabled", True):
                kinds.add(f"{name}: {type(one).__name__} {getattr(one, 'config', '')}")
    return sorted(kinds)


def _scales(model: nn.Module) -> list[tuple[str, float]]:
    """The scale of each active adapter: it comes from settings (`lora_alpha`, rsLoRA), not from weights."""
    peft = peft_model(model)
    active = set() if peft is None else set(peft.active_adapters)
    return sorted(
        (".".join(part for part in name.split(".") if part not in _WRAPPERS), float(scale))
        for name, module in ([] if peft is None else peft.named_modules())
        if isinstance(scaling := getattr(module, "scaling", None), dict)
        for adapter, scale in scaling.items()
        if adapter in active and isinstance(scale, int | float)
    )


def _named(model: nn.Module, base_only: bool) -> Iterator[tuple[str, Tensor]]:
    """What is saved, under the names without wrappers; a base model's as if it had no adapter."""
    peft = peft_model(model)
    owner_of = owner_by_name(peft)
    active = set() if peft is None else set(peft.active_adapters)
    for name, tensor in _saved(model):
        parts = [part for part in name.split(".") if part not in _WRAPPERS | _PEFT]
        owner = owner_of(parts)
        if owner is not None and (base_only or owner not in active):
            continue
        if peft is not None and parts[:2] == ["base_model", "model"]:
            parts = parts[2:]
        yield ".".join(parts), tensor


def _saved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers."""
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


@torch.no_grad()
def _checksum(tensor: Tensor, dtype: torch.dtype) -> int:
    """Σ v_i · w_i modulo 2^64 over the bits v_i of the values in a type, with odd pseudo-random weights w_i."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    flat = tensor.contiguous().view(-1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        values = flat[start : start + _CHUNK].to(dtype)
        part = values.view(_INTEGERS[values.element_size()]).to(torch.int64)
        place = torch.arange(start, start + part.numel(), device=part.device)
        total += (part * ((place * 6364136223846793005 + 1442695040888963407) | 1)).sum()
    return int(total)
