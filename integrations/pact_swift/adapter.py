"""What ms-swift adds to pact-plugin: an adapter for its trainers, and the check of its configurations.

Imports ms-swift only when one of its trainers is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_plugin.hooks.spec import Adapter, ConfigCheck, TrainerParts, hookimpl, packages_of

if TYPE_CHECKING:
    from pact_plugin.run.check_report import CheckReport


def _matches(trainer: Any) -> bool:
    """Every trainer of ms-swift's, so that those which cannot be constrained are refused by name."""
    return "swift" in packages_of(trainer)


def _parts(trainer: Any, folder: str | None) -> TrainerParts:
    from pact_swift.trainer import swift_parts

    return swift_parts(trainer, folder)


def _attach(trainer: Any, constraint: Any) -> Any:
    from pact_swift.trainer import constrain_swift

    return constrain_swift(trainer, constraint)


@hookimpl
def pact_adapters() -> Iterable[Adapter]:
    """ms-swift's trainer for supervised fine-tuning."""
    return [Adapter("swift", _matches, _parts, _attach)]


@hookimpl
def pact_config_checks() -> Iterable[ConfigCheck]:
    """`pact-plugin check`."""

    def check(config: Path) -> CheckReport:
        from pact_swift.check.check import check

        return check(config)

    def reads(config: Path) -> bool:
        from pact_swift.check.config_file import is_swift

        return is_swift(config)

    return [ConfigCheck("swift", check, reads)]
