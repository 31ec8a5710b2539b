"""The TRL adapters, as pact-plugin finds them. They import TRL only when a TRL trainer is at hand."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from pact_transformers.plugin import FRAMEWORKS

from pact_plugin.hooks.spec import Adapter, TrainerParts, hookimpl, packages_of

_PREFERENCES = ("DPOTrainer", "KTOTrainer")


def sft_classes(trainer: Any) -> list[type]:
    """Those of a trainer's classes that are TRL's SFTTrainer: its own, or what stands in its place.

    Unsloth puts a class of its own there. Who imported TRL before Unsloth still holds TRL's.
    """
    trl = sys.modules.get("trl.trainer.sft_trainer")
    return [
        base
        for base in type(trainer).__mro__
        if trl is not None
        and (base is trl.SFTTrainer or (base.__name__, base.__module__) == ("SFTTrainer", trl.__name__))
    ]


def _of_no_framework(trainer: Any) -> bool:
    """Those of frameworks have adapters of their own."""
    return packages_of(trainer).isdisjoint(FRAMEWORKS)


def _matches(trainer: Any) -> bool:
    """Not TRL's experimental trainers on top of it, whose losses are others, such as those of distillation."""
    experimental = any(base.__module__.startswith("trl.experimental.") for base in type(trainer).__mro__)
    return bool(sft_classes(trainer)) and not experimental and _of_no_framework(trainer)


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_transformers.mixin import trainer_parts

    return trainer_parts(trainer, folder)


def _attach(trainer: Any, constraint: Any) -> Any:
    from pact_transformers.mixin import constrain
    from trl.trainer import sft_trainer

    # Before 1.10 TRL hands its own DFT loss to the Trainer as a `compute_loss_func`; the easing knows that one.
    own = trainer.compute_loss_func
    own_loss = own is not None and own is not getattr(sft_trainer, "dft_loss", None)
    return constrain(trainer, constraint, *sft_classes(trainer), own_loss=own_loss)


def _prefers(trainer: Any) -> bool:
    """By names, so that nothing is imported."""
    ours = any(
        base.__name__ in _PREFERENCES and base.__module__.startswith("trl.") for base in type(trainer).__mro__
    )
    return ours and _of_no_framework(trainer)


def _preference_parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_transformers.mixin import trainer_parts

    return trainer_parts(trainer, folder, labels=False)


def _attach_preferences(trainer: Any, constraint: Any) -> Any:
    from pact_trl.preference import constrain_preferences

    return constrain_preferences(trainer, constraint)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """TRL's SFTTrainer, and its trainers on preferences, and their subclasses."""
    return [
        Adapter("trl", _matches, _parts, _attach),
        Adapter("trl preferences", _prefers, _preference_parts, _attach_preferences),
    ]
