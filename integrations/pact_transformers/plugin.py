"""What transformers adds to pact-plugin: an adapter for its Trainer, aligned models and guard models by path or hub id.

Imports transformers only when it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from pact_plugin.errors import ReferenceModelError
from pact_plugin.hooks.spec import Adapter, JudgeSource, ReferenceSource, hookimpl
from pact_plugin.tokens import tokenizer_fingerprint

_OWN_ADAPTERS = ("trl", "axolotl")
"""Packages whose trainers have adapters of their own, or none."""


def _matches(trainer: Any) -> bool:
    module = sys.modules.get("transformers.trainer")
    if module is None or not isinstance(trainer, module.Trainer):
        return False
    return all(base.__module__.split(".")[0] not in _OWN_ADAPTERS for base in type(trainer).__mro__)


def _parts(trainer: Any) -> tuple[Any, Any]:
    from pact_transformers.trainer import causal_parts

    return causal_parts(trainer)


def _attach(trainer: Any, constraint: Any) -> Any:
    from pact_transformers.trainer import constrain_trainer

    return constrain_trainer(trainer, constraint)


def _configure(trainer: Any, config: Any) -> Any:
    from pact_transformers.stored import with_reference

    return with_reference(trainer, config)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """`transformers.Trainer` and its subclasses, but not those of frameworks with adapters of their own."""
    return [Adapter("transformers", _matches, _parts, _attach, _configure)]


def load_reference_model(name: str, model: Any, tokenizer: Any) -> Any:
    """Load an aligned model beside the model in training: same device and precision, same tokenizer.

    Raises:
        ReferenceModelError: It cannot be loaded, or has another tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parameter = next(model.parameters())
    dtype = parameter.dtype if parameter.dtype.is_floating_point else "auto"
    try:
        other = AutoTokenizer.from_pretrained(name)
        reference = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ReferenceModelError(
            f"the aligned model cannot be loaded ({error})",
            key="reference",
            value=name,
            remedy="Give a folder or hub id that holds a causal language model and its tokenizer, or use `auto`.",
        ) from error
    if tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer):
        raise ReferenceModelError(
            "the aligned model has another tokenizer than the model in training",
            key="reference",
            value=name,
            remedy="Use the aligned model that training starts from.",
        )
    return reference.to(parameter.device)


@hookimpl
def pact_references() -> Iterable[ReferenceSource]:
    """Paths and hub ids."""
    return [ReferenceSource("pretrained", load_reference_model)]


def _load_guard(name: str) -> Any:
    from pact_transformers.guards import load_guard

    return load_guard(name)


@hookimpl
def pact_judges() -> Iterable[JudgeSource]:
    """Guard models by path or hub id."""
    return [JudgeSource("guard", _load_guard)]
