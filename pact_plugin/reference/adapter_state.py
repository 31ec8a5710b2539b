"""What a model's PEFT adapter is before training, by trying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pact_plugin.errors import ReferenceModelError
from pact_plugin.model.adapters import not_in_decoder, trained_beside
from pact_plugin.model.head import language_head
from pact_plugin.model.ranks import is_fsdp, require_weights
from pact_plugin.model.wrappers import adapter_off, peft_model, unwrap
from pact_plugin.reference.source import AdapterState, Source

_TRIED = 16
"""Token ids on which an adapter is tried."""
_AT_A_TIME = 4096
"""Token ids whose embeddings are compared at a time."""

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
        ReferenceModelError: The adapter acts in PEFT's own forward pass alone or was not added by PEFT, this rank has
            no weights yet, or FSDP has sharded embeddings that the adapter is around.
    """
    peft = peft_model(model)
    if peft is None:
        if getattr(unwrap(model), "_hf_peft_config_loaded", False):
            raise ReferenceModelError(
                "it was added by the model's own `add_adapter`, and would be taken for part of the aligned model",
                key="adapter",
                remedy="Wrap the model by `peft.get_peft_model` instead.",
            )
        return "none"
    for config in peft.peft_config.values():
        if (kind := not_in_decoder(config)) is not None:
            raise ReferenceModelError(
                f"{kind} acts in PEFT's own forward pass alone, which the constraint does not call",
                key="adapter",
                remedy="Use LoRA or another adapter of the weights.",
            )
    require_weights(model)
    head = language_head(model)
    sources = [
        Source("adapter_off", model, head, scope=scope) for scope in (nullcontext, partial(adapter_off, peft))
    ]
    same = _alike(peft, _seen(sources, partial(_predicted, torch.arange(_TRIED, device=head.device))))
    # Rows of tokens that the model has not been trained on stand at the end of the vocabulary.
    same = same and all(_alike(peft, _seen(sources, read)) for read in _embedded(head.decoder))
    if not same:
        return "trained"
    return "beside" if trained_beside(peft) else "new"


def _seen(
    sources: Sequence[Source], read: Callable[[Source], tuple[Tensor, ...]]
) -> list[tuple[Tensor, Tensor]]:
    """What is read with the adapter on, each beside the same with it off."""
    found = []
    for source in sources:
        with source.session():
            found.append(read(source))
    return list(zip(*found, strict=True))


def _predicted(ids: Int[Tensor, " n"], source: Source) -> tuple[Tensor, ...]:
    hidden = source.hidden((), {"input_ids": ids[None]})
    return hidden, source.project(hidden[0])


def _embedded(decoder: Any) -> Iterator[Callable[[Source], tuple[Tensor, ...]]]:
    """Reads the embeddings of all tokens, part by part, where the adapter is around them.

    Raises:
        ReferenceModelError: They are sharded, and cannot be read by themselves.
    """
    embedding = decoder.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        return
    if is_fsdp(decoder):
        raise ReferenceModelError(
            "it is around the embeddings, which FSDP has sharded, so it cannot be tried",
            key="adapter",
            value=type(embedding).__name__,
            remedy="Build the constraint before the model is sharded.",
        )
    for ids in torch.arange(len(embedding.weight), device=embedding.weight.device).split(_AT_A_TIME):
        yield partial(_embeddings, embedding, ids)


def _embeddings(embedding: nn.Module, ids: Int[Tensor, " n"], source: Source) -> tuple[Tensor, ...]:
    return (embedding(ids),)


def _alike(peft: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the model is the same without the adapter: bit for bit, or but for the rounding of a new DoRA."""
    if all(torch.equal(a, b) for a, b in pairs):
        return True
    if not _is_new_dora(peft):
        return False
    kinds = {t.dtype for t in (*peft.parameters(), *(a for a, _ in pairs)) if t.is_floating_point()}
    rounding = _ROUNDINGS * max(torch.finfo(kind).eps for kind in kinds)
    return all((a.float() - b.float()).norm() <= rounding * b.float().norm() for a, b in pairs)


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
