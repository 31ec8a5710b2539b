"""What transformers adds to pact-plugin: an adapter for its Trainer, aligned models and guard models by path or hub id.

Imports transformers only when it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from pact_plugin.errors import PactError, ReferenceModelError
from pact_plugin.hooks.spec import Adapter, JudgeSource, ModelLoader, TrainerParts, hookimpl, packages_of
from pact_plugin.tokens.safety_tokens import tokenizer_fingerprint
from pact_transformers.errors import other_tokenizer

FRAMEWORKS = frozenset({"axolotl", "swift", "llamafactory"})
"""Packages whose trainers, built on those of transformers and TRL, have adapters of their own."""


def _matches(trainer: Any) -> bool:
    module = sys.modules.get("transformers.trainer")
    if module is None or not isinstance(trainer, module.Trainer):
        return False
    return packages_of(trainer).isdisjoint({"trl", *FRAMEWORKS})


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_transformers.mixin import trainer_parts

    return trainer_parts(trainer, folder)


def _attach(trainer: Any, constraint: Any) -> Any:
    from transformers import Trainer

    from pact_transformers.mixin import constrain

    return constrain(trainer, constraint, Trainer)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """`transformers.Trainer` and its subclasses, but not those of frameworks with adapters of their own."""
    return [Adapter("transformers", _matches, _parts, _attach)]


def load_reference_model(name: str, model: Any, tokenizer: Any) -> Any:
    """Load an aligned model beside the model in training: same device and precision, same tokenizer.

    An adapter comes on the model that it names, in every weight.

    Raises:
        ReferenceModelError: It cannot be loaded, an adapter does not fit its model, or it has another tokenizer.
    """
    from pact_transformers.loading import load_causal_lm, load_tokenizer

    parameter = next(model.parameters())
    dtype = parameter.dtype if parameter.dtype.is_floating_point else "auto"
    try:
        other = load_tokenizer(name)
        reference = load_causal_lm(name, dtype=dtype, device=parameter.device)
    except PactError as error:
        raise ReferenceModelError(
            f"the aligned model cannot be loaded ({error.__cause__ or error.problem})",
            key="reference",
            value=name,
            remedy="Give a folder or hub id that holds a causal language model, or an adapter that fits the model it "
            "names, and its tokenizer; or use `auto`.",
        ) from error
    if tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer):
        raise other_tokenizer(name)
    return reference


@hookimpl
def pact_model_loaders() -> Iterable[ModelLoader]:
    """Models, adapters and data sets by path or hub id; nothing where transformers is missing."""
    if find_spec("transformers") is None:
        return []
    from pact_transformers import adapters, loading, prompt_rows

    return [
        ModelLoader(
            "transformers",
            model=loading.load_causal_lm,
            reference=load_reference_model,
            tokenizer=loading.load_tokenizer,
            check_model=loading.check_model,
            check_adapter=adapters.check_adapter,
            adapter=adapters.load_adapter,
            adapter_tokenizer=loading.adapter_tokenizer,
            prompt_rows=prompt_rows.prompt_rows,
        )
    ]


def _load_guard(name: str) -> Any:
    from pact_transformers.guards import load_guard

    return load_guard(name)


def _check_guard(name: str) -> None:
    from pact_transformers.guards import check_guard

    check_guard(name)


@hookimpl
def pact_judges() -> Iterable[JudgeSource]:
    """Guard models by path or hub id."""
    return [JudgeSource("guard", _load_guard, _check_guard)]
