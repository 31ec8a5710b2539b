"""`register`, which a file of `--external_plugins` calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError

_noted: ContextVar[list[PactConfig] | None] = ContextVar("noted", default=None)


def register(config: PactConfig | dict[str, Any] | bool = True) -> None:
    """Constrain the supervised fine-tuning that ms-swift begins in this process.

    Args:
        config: Settings; `True` for the defaults.

    Raises:
        AdapterError: The process trains with Megatron-SWIFT.
        ConfigError: A setting cannot be used, or the process has other settings already.
    """
    if config is False:
        problem = "PACT is registered to be off"
        raise ConfigError(problem, key="external_plugins", value=False, remedy="Remove the plugin.")
    settings = PactConfig.of(config)
    noted = _noted.get()
    if noted is not None:
        noted.append(settings)
        return
    if "swift.megatron.arguments" in sys.modules:
        raise AdapterError(
            "Megatron-SWIFT has trainers of its own, which cannot be constrained",
            key="external_plugins",
            remedy="Train with `swift sft`, or remove the plugin.",
        )
    from pact_swift.factory import bring_in

    bring_in(settings)


@contextmanager
def noting() -> Iterator[list[PactConfig]]:
    """Collect what is registered inside, without an effect and without ms-swift."""
    found: list[PactConfig] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)
