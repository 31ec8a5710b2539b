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
from pact_plugin.model.adapters import trained_beside
from pact_plugin.model.fingerprint import Fingerprint, model_fingerprint
from pact_plugin.model.head import LanguageHead, language_head
from pact_plugin.model.ranks import sharding
from pact_plugin.model.wrappers import adapter_off, evaluation_mode, peft_model, unwrap

logger = logging.getLogger("pact_plugin")

SourceKind = Literal["itself", "adapter_off", "copy", "model"]
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
        vocabulary: How many tokens the model in training knows, where this one has rows for more.
    """

    kind: SourceKind
    model: nn.Module
    head: LanguageHead
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    parameters: Mapping[nn.Module, dict[str, Tensor]] = field(default_factory=dict)
    base_only: bool = False
    vocabulary: int | None = None
    _fingerprints: dict[bool, Fingerprint] = field(default_factory=dict)

    def fingerprint(self, *, any_type: bool = False) -> Fingerprint:
        """Which model it is (see `model_fingerprint`), as it was when first asked; every rank must call it."""
        if any_type not in self._fingerprints:
            found = model_fingerprint(self.model, base_only=self.base_only, any_type=any_type)
            self._fingerprints[any_type] = found
        return self._fingerprints[any_type]

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
        """[N, d] -> [N, V] raw logits, of tokens that the model in training knows; to be called within a session."""
        logits: Tensor = self._call(self.head.projection, (hidden,), {})
        return logits[..., : self.vocabulary]

    def safety_logits(self, hidden: Tensor, ids: Tensor, chunk_size: int) -> Tensor:
        """[N, d] -> [N, K] logits of some tokens; to be called within a session."""
        replaced = self._replaced(self.head.projection)
        return self.head.safety_logits(
            hidden, ids, chunk_size=chunk_size, project=self.project, replaced=replaced
        )

    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        replaced = self._replaced(module)
        return functional_call(module, replaced, args, dict(kwargs)) if replaced else module(*args, **kwargs)

    def _replaced(self, module: nn.Module) -> dict[str, Tensor]:
        """The replacements of a module's parameters, which follow the model to another device: tied ones as one."""
        replaced = self.parameters.get(module, {})
        device = next(module.parameters()).device if replaced else None
        if any(tensor.device != device for tensor in replaced.values()):
            moved: dict[Tensor, Tensor] = {}
            for own in self.parameters.values():
                own.update({name: moved.setdefault(one, one.to(device)) for name, one in own.items()})
        return replaced

    def require_kept(self) -> None:
        """Refuse weights that are trained now and were not at the start, where the aligned model moves with them.

        Raises:
            ReferenceModelError: There are such, or the parameters have been sharded since they were copied: FSDP puts
                those in training back in place of the copy.
        """
        if self.kind == "copy" and (sharded := sharding(self.model)) is not None:
            raise sharded_copy(sharded, "no folder is named for a table of predictions")
        if self.kind == "adapter_off":
            begun = trained_beside(peft_model(self.model))
        else:
            begun = sum(
                parameter.requires_grad and name not in kept
                for module, kept in self.parameters.items()
                for name, parameter in module.named_parameters()
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
    kind: SourceKind, model: nn.Module, other: nn.Module | None = None, *, adapter: AdapterState = "none"
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


def sharded_copy(key: str, why: str, *, obstacle: bool = False) -> ReferenceModelError:
    """That sharded parameters cannot be compared with a copy: the model would be compared with itself.

    Args:
        key: The setting that shards them.
        why: A copy would be needed.
        obstacle: Whether that lies in the data.
    """
    readable = (
        "Use text data of known length"
        if obstacle
        else "Name a folder as `advanced: {store: FOLDER}` and `fill` it"
    )
    other = "use ZeRO stage 2" if key == "deepspeed" else "name the aligned model as `reference`"
    return ReferenceModelError(
        f"{why}, and a copy of the parameters, which are sharded, cannot serve as the reference",
        key=key,
        remedy=f"{readable}, or {other}.",
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
    return Source("model", other, language_head(other), vocabulary=language_head(model).vocabulary)
