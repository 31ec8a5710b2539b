"""Would a configuration's run be constrained? `pact-plugin check`, and what the plugin refuses by the same rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pact_plugin.hooks.spec import ConfigCheck, hookimpl

if TYPE_CHECKING:
    from pact_plugin.run.check_report import CheckReport


@hookimpl
def pact_config_checks() -> Iterable[ConfigCheck]:
    """`pact-plugin check`."""

    def check(config: Path) -> CheckReport:
        from pact_axolotl.check.check import check

        return check(config)

    return [ConfigCheck("axolotl", check)]
