"""The TRL adapter, as pact-plugin finds it. Imports TRL only when a TRL trainer is at hand."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from pact_plugin.hooks.spec import Adapter, TrainerParts, hookimpl


def _matches(trainer: Any) -> bool:
    trl = sys.modules.get("trl.trainer.sft_trainer")
    return trl is not None and isinstance(trainer, trl.SFTTrainer)


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_transformers.mixin import trainer_parts

    return trainer_parts(trainer, folder)


def _attach(trainer: Any, constraint: Any) -> Any:
    from pact_trl.trainer import constrain_sft

    return constrain_sft(trainer, constraint)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """TRL's SFTTrainer and its subclasses."""
    return [Adapter("trl", _matches, _parts, _attach)]
