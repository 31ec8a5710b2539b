"""The Axolotl adapter, as pact-plugin finds it. Imports Axolotl only when one of its trainers is at hand."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.spec import Adapter, ConfigCheck, TrainerParts, hookimpl
from pact_plugin.run.receipt import TOKENS_FILE
from pact_plugin.tokens.safety_tokens import SafetyTokens

_OTHER_LOSSES = (
    "axolotl.integrations.diffusion",
    "axolotl.core.trainers.diffusion_lm",
    "axolotl.integrations.kd",
    "axolotl.integrations.hatchery",
)
"""Modules of trainers that derive from AxolotlTrainer, but whose loss is another."""


def _matches(trainer: Any) -> bool:
    """Every trainer of Axolotl's, so that those which cannot be constrained are refused by name."""
    return any(base.__module__.split(".")[0] == "axolotl" for base in type(trainer).__mro__)


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_transformers.mixin import trainer_parts

    base = getattr(sys.modules.get("axolotl.core.trainers.base"), "AxolotlTrainer", None)
    other = any(kind.__module__.startswith(_OTHER_LOSSES) for kind in type(trainer).__mro__)
    if base is None or not isinstance(trainer, base) or other:
        raise AdapterError(
            "this trainer's loss is not a next-token cross-entropy, so it cannot be constrained",
            key="trainer",
            value=type(trainer).__name__,
            remedy="Remove `rl`, `reward_model`, `process_reward_model` or the plugin that brings it, or set "
            "`pact: false`.",
        )
    return trainer_parts(trainer, folder)


def _attach(trainer: Any, constraint: Any) -> Any:
    from axolotl.core.trainers.base import AxolotlTrainer
    from pact_transformers.mixin import constrain, foreign_loss, require_plain_task_loss

    require_plain_task_loss(
        trainer,
        constraint,
        own_loss=trainer.compute_loss_func is not None,
        foreign=foreign_loss(trainer, AxolotlTrainer),
    )
    return constrain(trainer, constraint)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """Axolotl's trainers for supervised fine-tuning."""
    return [Adapter("axolotl", _matches, _parts, _attach)]


@hookimpl
def pact_config_checks() -> Iterable[ConfigCheck]:
    """`pact-plugin check`."""

    def run(config: Path, as_json: bool) -> bool:
        from pact_axolotl.check.command import run

        return run(config, as_json=as_json)

    return [ConfigCheck("axolotl", run)]


def with_checkpoint_tokens(config: PactConfig, checkpoint: str | None) -> PactConfig:
    """A resumed run goes on with the tokens that were chosen when it began, without choosing them again."""
    if config.safety_tokens is not None or not checkpoint:
        return config
    path = Path(checkpoint) / TOKENS_FILE
    return config.model_copy(update={"safety_tokens": SafetyTokens.load(path)}) if path.is_file() else config
