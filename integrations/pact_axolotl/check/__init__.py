"""Would a configuration's run be constrained? `pact-plugin check`, and what the plugin refuses by the same rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pact_plugin.hooks.spec import ConfigCheck, hookimpl


@hookimpl
def pact_config_checks() -> Iterable[ConfigCheck]:
    """`pact-plugin check`."""

    def run(config: Path, as_json: bool) -> bool:
        from pact_axolotl.check.command import run

        return run(config, as_json=as_json)

    return [ConfigCheck("axolotl", run)]
