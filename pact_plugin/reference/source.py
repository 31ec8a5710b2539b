"""Where the aligned model's predictions come from (clause C7 of spec/PACT.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pact_plugin.errors import ReferenceModelError
from pact_plugin.model.head import LanguageHead, language_head, unwrap
from pact_plugin.model.wrappers import evaluation_mode, peft_model

logger = logging.getLogger("pact_plugin")


@dataclass(frozen=True, eq=False)
class Reference:
    """The aligned model, as a decoder and a projection to call in place of the ones in training.

    Args:
        kind: `stored`, `adapter_off`, `frozen_copy` or `frozen_model`.
        model: The module whose dropout is off during a reference pass.
        head: Its structure.
        scope: Context in which its decoder and projection give the aligned model's predictions.
        parameters: Replacements of the decoder's and the projection's parameters (`frozen_copy`).
        lasting: Whether it still is the aligned model after the first training step; a `stored` reference that is
            the model in training itself is not.
    """

    kind: Literal["stored", "adapter_off", "frozen_copy", "frozen_model"]
    model: nn.Module
    head: LanguageHead
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    parameters: Mapping[nn.Module, dict[str, Tensor]] = field(default_factory=dict)
    lasting: bool = True

    @contextmanager
    def session(self) -> Iterator[None]:
        """No gradient and no dropout inside; every module's training flag as before outside."""
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
        """[N, d] -> [N, K] logits of the safety tokens; to be called within a session."""
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

    @property
    def extra_bytes(self) -> int:
        """Memory that the reference holds beside the model in training, in bytes."""
        if self.kind == "frozen_model":
            return sum(p.numel() * p.element_size() for p in self.model.parameters())
        unique = {id(t): t for tensors in self.parameters.values() for t in tensors.values()}
        return sum(t.numel() * t.element_size() for t in unique.values())


def build_reference(model: nn.Module, spec: str | nn.Module, probe: Tensor) -> Reference:
    """Decide where the reference comes from, before the first training step.

    Args:
        model: The model to be trained, still equal to the aligned model.
        spec: `auto`, `stored`, `adapter_off`, `frozen_copy`, or the aligned model itself as a module.
        probe: [n] token ids on which an adapter is tried on and off.

    Raises:
        ReferenceModelError: The reference asked for cannot exist.
    """
    if isinstance(spec, nn.Module):
        return _frozen_model(model, spec)
    if spec == "frozen_copy":
        return _log(_frozen_copy(model))
    if spec not in ("auto", "stored", "adapter_off"):
        raise ReferenceModelError(
            "not a kind of reference, and no plugin loads it",
            key="reference",
            value=spec,
            remedy="Use `auto`, `stored`, `adapter_off`, `frozen_copy`, or a path or hub id (needs "
            "pact-plugin[transformers]).",
        )
    peft = peft_model(model)
    if peft is None:
        if spec == "adapter_off":
            raise ReferenceModelError(
                "the model has no PEFT adapter to switch off",
                key="reference",
                value=spec,
                remedy="Use `reference: auto`, or train with a PEFT adapter.",
            )
        return _log(_itself(model) if spec == "stored" else _frozen_copy(model))
    if any(getattr(config, "is_prompt_learning", False) for config in peft.peft_config.values()):
        raise ReferenceModelError(
            "prompt-learning adapters prepend virtual tokens, which the reference would not see",
            key="reference",
            value=spec,
            remedy="Use a LoRA-like adapter.",
        )
    head = language_head(model)
    off = Reference("adapter_off", model, head, scope=peft.disable_adapter)
    if _adapter_changes_nothing(off, head, probe):
        return _log(replace(off, kind="stored") if spec == "stored" else off)
    if spec == "stored":
        return _log(_itself(model))
    if spec == "adapter_off":
        logger.warning(
            "reference=adapter_off: the adapter already changes the model's predictions; what it has learnt so far, "
            "safety included, is not part of the reference. Use `reference: auto` to keep it."
        )
        return _log(off)
    return _log(_frozen_copy(model))


def _adapter_changes_nothing(off: Reference, head: LanguageHead, probe: Tensor) -> bool:
    on = Reference("adapter_off", off.model, head)
    with on.session():
        hidden = on.hidden((), {"input_ids": probe[None]})
        with_adapter = (hidden, on.project(hidden[0]))
    with off.session():
        hidden = off.hidden((), {"input_ids": probe[None]})
        without = (hidden, off.project(hidden[0]))
    return all(torch.equal(a, b) for a, b in zip(with_adapter, without, strict=True))


def _itself(model: nn.Module) -> Reference:
    """The model in training, which is the aligned one until its first step."""
    return Reference("stored", model, language_head(model), lasting=False)


def _frozen_copy(model: nn.Module) -> Reference:
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
            value="frozen_copy",
            remedy="Attach the constraint after the parameters to train are chosen.",
        )
    return Reference("frozen_copy", model, head, parameters=parameters)


def _frozen_model(model: nn.Module, reference: nn.Module) -> Reference:
    if reference is model or unwrap(reference) is unwrap(model):
        raise ReferenceModelError(
            "the reference is the model in training itself",
            key="reference",
            remedy="Pass another instance, or use `reference: auto`.",
        )
    reference.requires_grad_(False).eval()
    return _log(Reference("frozen_model", reference, language_head(reference)))


def _log(reference: Reference) -> Reference:
    size = reference.extra_bytes / 2**20
    logger.info("PACT reference: %s (%.1f MiB beside the model in training)", reference.kind, size)
    return reference
