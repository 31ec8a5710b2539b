"""What several commands read: models through a plugin, prompts by an option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pact_plugin.errors import ConfigError
from pact_plugin.hooks.manager import one_offered

if TYPE_CHECKING:
    from pact_plugin.hooks.spec import ModelLoader


def model_loader() -> ModelLoader:
    """What models are read with.

    Raises:
        PluginError: No integration is installed that could, as where transformers is missing.
    """
    loader: ModelLoader = one_offered(
        "pact_model_loaders", "Models are read with transformers: pip install 'pact-plugin[cli]'"
    )
    return loader


@contextmanager
def named_by(option: str) -> Iterator[None]:
    """Let errors of prompts name the option that gave them."""
    try:
        yield
    except ConfigError as error:
        key = option if error.key == "--prompts" else error.key
        raise ConfigError(error.problem, key=key, value=error.value, remedy=error.remedy) from error
