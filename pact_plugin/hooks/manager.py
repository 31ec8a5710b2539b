"""Finding plugins, and one adapter, loader or check among what they offer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pluggy

from pact_plugin.errors import AdapterError, PluginError
from pact_plugin.hooks.spec import NAME, Adapter, ConfigCheck, PactSpec


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The process's plugin manager, with every installed plugin loaded.

    Raises:
        PluginError: A plugin fails to import, or implements a hook that does not exist.
    """
    manager = pluggy.PluginManager(NAME)
    manager.add_hookspecs(PactSpec)
    try:
        manager.load_setuptools_entrypoints(NAME)
    except Exception as error:
        raise PluginError(
            f"a plugin of the entry-point group {NAME!r} fails to import: {error}",
            key="plugin",
            remedy="Repair or uninstall it.",
        ) from error
    check_plugins(manager)
    return manager


def register(plugin: object, name: str) -> None:
    """Add a plugin to this process by hand.

    Raises:
        PluginError: The name is taken, or it implements a hook that does not exist.
    """
    manager = plugin_manager()
    try:
        manager.register(plugin, name)
        check_plugins(manager)
    except (ValueError, pluggy.PluginValidationError, PluginError) as error:
        if manager.get_plugin(name) is plugin:
            manager.unregister(plugin)
        raise PluginError(
            str(error), key="plugin", value=name, remedy="Rename the plugin or its hook."
        ) from error


def check_plugins(manager: pluggy.PluginManager) -> None:
    """Raise `PluginError` when a plugin implements a hook that is not specified."""
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(
            str(error), key="plugin", remedy="The hooks are listed in pact_plugin/hooks/spec.py."
        ) from error


def offered(hook: str) -> dict[str, Any]:
    """Every named object that the plugins yield for a hook.

    Raises:
        PluginError: Two have the same name.
    """
    by_name: dict[str, Any] = {}
    for yielded in getattr(plugin_manager().hook, hook)():
        for item in yielded:
            if item.name in by_name:
                raise PluginError(
                    f"two plugins offer {hook} of one name",
                    key="name",
                    value=item.name,
                    remedy="Uninstall or rename one of them.",
                )
            by_name[item.name] = item
    return by_name


def one_offered(hook: str, remedy: str) -> Any:
    """The one object that the plugins yield for a hook.

    Raises:
        PluginError: There is none, or more than one.
    """
    found = offered(hook)
    if len(found) != 1:
        raise PluginError(
            f"{'no' if not found else 'more than one'} plugin offers {hook}",
            key="plugin",
            value=", ".join(found) or None,
            remedy=remedy,
        )
    return next(iter(found.values()))


def find_config_check(config: Path) -> ConfigCheck:
    """The check that reads a training configuration.

    Args:
        config: Its file, which need not be there.

    Raises:
        PluginError: There is none, or more than one.
    """
    checks: list[ConfigCheck] = list(offered("pact_config_checks").values())
    readers = [check for check in checks if check.reads is not None and check.reads(config)]
    readers = readers or [check for check in checks if check.reads is None]
    if len(readers) != 1:
        raise PluginError(
            f"{'no' if not readers else 'more than one'} plugin reads this configuration",
            key="config",
            value=str(config),
            remedy="Install the integration of your trainer, such as pact_axolotl; uninstall one that claims it, too.",
        )
    return readers[0]


def find_adapter(trainer: Any) -> Adapter:
    """The one adapter that knows a trainer.

    Raises:
        AdapterError: None does, or more than one.
    """
    adapters: Mapping[str, Adapter] = offered("pact_adapters")
    known = [adapter for adapter in adapters.values() if adapter.matches(trainer)]
    if len(known) == 1:
        return known[0]
    kind = f"{type(trainer).__module__}.{type(trainer).__qualname__}"
    if known:
        names = ", ".join(adapter.name for adapter in known)
        raise AdapterError(
            f"several adapters know this trainer: {names}",
            key="trainer",
            value=kind,
            remedy="Uninstall the plugin that should not claim it.",
        )
    names = ", ".join(adapters) or "none installed"
    raise AdapterError(
        f"no adapter knows this trainer (adapters: {names})",
        key="trainer",
        value=kind,
        remedy="Use a supported trainer, or PactConstraint in your own loop.",
    )
