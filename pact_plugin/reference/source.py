"""A model that the aligned one's predictions can be computed with (clause C7 of spec/PACT.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pact_plugin.errors import ReferenceModelError
from pact_plugin.model.adapters import owner_by_name
from pact_plugin.model.head import LanguageHead, language_head
from pact_plugin.model.wrappers import adapter_off, evaluation_mode, peft_model, unwrap

logger = logging.getLogger("pact_plugin")

_TRIED = 16
"""Token ids on which an adapter is tried."""

_ROUNDINGS = 16
"""Times the rounding of its types that a new DoRA may move a model: it divides by norms and multiplies with them."""

Kind = Literal["itself", "adapter_off", "copy", "model"]
AdapterState = Literal["none", "new", "beside", "trained"]


@dataclass(frozen=True, eq=False)
class Source:
    """The aligned model, as a decoder and a projection to call in place of the ones in training.

    Args:
        kind: `itself`, the model in training before its first step; `adapter_off`, the same with its adapter switched
            off; `copy`, with a frozen copy of the parameters in training; `model`, another model.
        model: The module whose dropout is off during a pass.
        head: Its structure.
        scope: Context in which its decoder and projection give the aligned model's predictions.
        parameters: Replacements of the decoder's and the projection's parameters (`copy`).
        base_only: Whether its adapters change nothing, so that the base model's weights alone tell which one it is.
    """

    kind: Kind
    model: nn.Module
    head: LanguageHead
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    parameters: Mapping[nn.Module, dict[str, Tensor]] = field(default_factory=dict)
    base_only: bool = False

    @contextmanager
    def session(self, device: torch.device | None = None) -> Iterator[None]:
        """No gradient and no dropout inside; every module's training flag as before outside.

        Args:
            device: Of the model in training, which a trainer may have moved. Another model follows it.
        """
        if self.kind == "model" and device not in (None, next(self.model.parameters()).device):
            self.model.to(device)
        with evaluation_mode(self.model), torch.no_grad(), self.scope():
            yield

    def hidden(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        autocast: AbstractContextManager[Any] | None = None,
    ) -> Tensor:
        """[B, T, d] final hidden states for a decoder call; to be called within a session.

        The call is repeated as the model in training received it: even `use_cache` decides whether transformers
        keeps the documents of a packed row apart. `autocast` is the precision that it ran in.
        """
        with autocast or nullcontext():
            return self._call(self.head.decoder, args, kwargs).last_hidden_state

    def project(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N, V] raw logits; to be called within a session."""
        return self._call(self.head.projection, (hidden,), {})

    def safety_logits(self, hidden: Tensor, ids: Tensor, chunk_size: int) -> Tensor:
        """[N, d] -> [N, K] logits of some tokens; to be called within a session."""
        weight = self.parameters.get(self.head.projection, {}).get("weight")
        return self.head.safety_logits(
            hidden, ids, chunk_size=chunk_size, project=self.project, weight=weight
        )

    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        replaced = self.parameters.get(module)
        if not replaced:
            return module(*args, **kwargs)
        device = next(module.parameters()).device
        for name, tensor in replaced.items():
            if tensor.device != device:
                replaced[name] = tensor.to(device)
        return functional_call(module, replaced, args, dict(kwargs))

    def require_kept(self) -> None:
        """Refuse weights that are trained now and were not at the start, where the aligned model moves with them.

        Counted, as wrappers rename parameters.

        Raises:
            ReferenceModelError: There are such.
        """
        if self.kind == "adapter_off":
            begun = _trained_beside(peft_model(self.model))
        else:
            begun = sum(
                max(0, sum(parameter.requires_grad for parameter in module.parameters()) - len(kept))
                for module, kept in self.parameters.items()
            )
        if begun > 0:
            raise ReferenceModelError(
                f"{begun} parameters have begun to train since the constraint was attached, so the aligned model has "
                "moved with them",
                key="reference",
                remedy="Attach after the parameters to train are chosen; for gradual unfreezing name the aligned "
                "model by its path, `reference: PATH`.",
            )

    @property
    def extra_bytes(self) -> int:
        """Memory that it holds beside the model in training, in bytes."""
        if self.kind == "model":
            return sum(p.numel() * p.element_size() for p in self.model.parameters())
        unique = {id(t): t for tensors in self.parameters.values() for t in tensors.values()}
        return sum(t.numel() * t.element_size() for t in unique.values())


def build_source(
    kind: Kind, model: nn.Module, other: nn.Module | None = None, *, adapter: AdapterState = "none"
) -> Source:
    """A source of a kind, before the first training step.

    Args:
        kind: What `choose` has chosen.
        model: The model in training, still equal to the aligned one.
        other: The aligned model, for `model`.
        adapter: Of the model in training (see `adapter_state`).

    Raises:
        ReferenceModelError: It cannot exist.
    """
    if kind == "model":
        assert other is not None
        source = _another(model, other)
    elif kind == "adapter_off":
        source = Source(kind, model, language_head(model), scope=partial(adapter_off, peft_model(model)))
    elif kind == "copy":
        source = _copy(model)
    else:
        source = Source(kind, model, language_head(model))
    if kind == "adapter_off" or (kind != "model" and adapter == "beside"):
        source = replace(source, base_only=True)
    logger.info(
        "PACT reference: %s (%.1f MiB beside the model in training)", kind, source.extra_bytes / 2**20
    )
    return source


def adapter_state(model: nn.Module) -> AdapterState:
    """What a model's PEFT adapter is before training.

    Args:
        model: The model to be trained; its adapter is tried on and off.

    Returns:
        `new`: without it the model is and stays the aligned one; `beside`: it is, but weights beside the adapter are
        trained; `trained`: it is not; `none`: there is no adapter.

    Raises:
        ReferenceModelError: The adapter prepends virtual tokens.
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
    return "beside" if _trained_beside(peft) else "new"


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


def _trained_beside(peft: Any) -> int:
    """How many parameters outside of the adapters train, such as biases: they move the model without its adapter."""
    owner_of = owner_by_name(peft)
    return sum(
        parameter.requires_grad and owner_of(name.split(".")) is None
        for name, parameter in peft.named_parameters()
    )


def _copy(model: nn.Module) -> Source:
    head = language_head(model)
    copies: dict[int, Tensor] = {}

    def frozen(module: nn.Module) -> dict[str, Tensor]:
        return {
            name: copies.setdefault(id(parameter), parameter.detach().clone())
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    parameters = {module: frozen(module) for module in (head.decoder, head.projection)}
    if not copies:
        raise ReferenceModelError(
            "the model has no parameter in training, so there is nothing to copy",
            key="reference",
            remedy="Attach the constraint after the parameters to train are chosen.",
        )
    return Source("copy", model, head, parameters=parameters)


def _another(model: nn.Module, other: nn.Module) -> Source:
    if other is model or unwrap(other) is unwrap(model):
        raise ReferenceModelError(
            "the reference is the model in training itself",
            key="reference",
            remedy="Pass another instance, or use `reference: auto`.",
        )
    other.requires_grad_(False).eval()
    return Source("model", other, language_head(other))
