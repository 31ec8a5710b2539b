"""What Axolotl adds to pact-plugin: an adapter for its trainers, the check of its configurations, and training by them.

Imports Axolotl only when one of its trainers is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pact_axolotl.check import pact_config_checks
from pact_axolotl.launch import pact_train_commands
from pact_plugin.hooks.spec import Adapter, TrainerParts, hookimpl, packages_of

__all__ = ["pact_adapters", "pact_config_checks", "pact_train_commands"]

_OTHER_LOSSES = (
    "axolotl.integrations.diffusion",
    "axolotl.core.trainers.diffusion_lm",
    "axolotl.integrations.kd",
    "axolotl.integrations.hatchery",
)
"""Modules of trainers that derive from AxolotlTrainer, but whose loss is another."""


def _matches(trainer: Any) -> bool:
    """Every trainer of Axolotl's, so that those which cannot be constrained are refused by name."""
    return "axolotl" in packages_of(trainer)


def _prefers(trainer: Any) -> bool:
    from trl import DPOTrainer

    return isinstance(trainer, DPOTrainer)


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from axolotl.core.trainers.base import AxolotlTrainer
    from pact_transformers.checkpoints import checkpoint_of
    from pact_transformers.errors import unconstrainable
    from pact_transformers.mixin import trainer_parts
    from pact_transformers.resuming import store_beside

    prefers = _prefers(trainer)
    other = any(kind.__module__.startswith(_OTHER_LOSSES) for kind in type(trainer).__mro__)
    if other or not (prefers or isinstance(trainer, AxolotlTrainer)):
        raise unconstrainable(
            "this trainer's loss is neither a next-token cross-entropy nor DPO's",
            "trainer",
            type(trainer).__name__,
            "Remove `rl`, `reward_model`, `process_reward_model` or the plugin that brings it, or set "
            "`pact: false`.",
        )
    # A run that is resumed in another folder reads the table of the run that it goes on with.
    cfg = getattr(trainer, "axolotl_cfg", None) or {}
    return trainer_parts(
        trainer,
        folder or store_beside(checkpoint_of(cfg.get("resume_from_checkpoint"), None)),
        labels=not prefers,
    )


def _attach(trainer: Any, constraint: Any) -> Any:
    from axolotl.core.trainers.base import AxolotlTrainer
    from pact_transformers.mixin import constrain

    if _prefers(trainer):
        from pact_trl.preference import constrain_preferences

        return constrain_preferences(trainer, constraint)
    return constrain(trainer, constraint, AxolotlTrainer)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """Axolotl's trainers for supervised fine-tuning, and for preferences by DPO."""
    return [Adapter("axolotl", _matches, _parts, _attach)]
