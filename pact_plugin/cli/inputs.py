"""What several commands read models with."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
