"""What LLaMA-Factory adds to pact-plugin: an adapter for its trainers, a check, and training by a configuration.

Imports LLaMA-Factory only when one of its trainers is at hand, or trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_llamafactory.launch import pact_train_commands
from pact_plugin.hooks.spec import Adapter, ConfigCheck, TrainerParts, hookimpl, packages_of

__all__ = ["pact_adapters", "pact_config_checks", "pact_train_commands"]

if TYPE_CHECKING:
    from pact_plugin.run.check_report import CheckReport


def _matches(trainer: Any) -> bool:
    """Every trainer of LLaMA-Factory's, so that those which cannot be constrained are refused by name."""
    return "llamafactory" in packages_of(trainer)


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_llamafactory.trainer import llamafactory_parts

    return llamafactory_parts(trainer, folder)


def _attach(trainer: Any, constraint: Any) -> Any:
    from pact_llamafactory.trainer import constrain_llamafactory

    return constrain_llamafactory(trainer, constraint)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """LLaMA-Factory's trainers for supervised fine-tuning and pretraining."""
    return [Adapter("llamafactory", _matches, _parts, _attach)]


@hookimpl
def pact_config_checks() -> Iterable[ConfigCheck]:
    """`pact-plugin check`."""

    def check(config: Path) -> CheckReport:
        from pact_llamafactory.check.check import check

        return check(config)

    def reads(config: Path) -> bool:
        from pact_llamafactory.check.config_file import is_llamafactory

        return is_llamafactory(config)

    return [ConfigCheck("llamafactory", check, reads)]
