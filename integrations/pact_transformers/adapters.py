"""Loading a PEFT adapter onto a model, and nothing less than the whole of it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

from pact_plugin.errors import ConfigError, PluginError

_REMEDY = "Give the directory or hub id of an adapter that was trained on this model."


def check_adapter(adapter: str) -> None:
    """Refuse what cannot be loaded as an adapter, before any model is loaded.

    Args:
        adapter: A directory or a hub id.

    Raises:
        ConfigError: There is no such adapter, or it works by virtual tokens, which are not seen below the model's
            own forward pass.
        PluginError: peft is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise PluginError("an adapter needs the package peft", remedy="pip install peft")
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise _cannot_load(adapter, error) from error
    if config.is_prompt_learning:
        raise ConfigError(
            "an adapter of virtual tokens cannot be audited",
            key="adapter",
            value=adapter,
            remedy="Use LoRA or another adapter of the weights.",
        )


def load_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter on it, in eval mode; its own weights are left as they are.

    Args:
        model: What the adapter was trained on.
        adapter: A directory or a hub id.

    Raises:
        ConfigError: There is no such adapter, it does not fit the model in every weight, or another is on the model.
        PluginError: peft is missing.
    """
    check_adapter(adapter)
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "the model has an adapter on it already, which this one would replace",
            key="adapter",
            value=adapter,
            remedy="Merge that one into its model first.",
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, adapter)
            # Loaded once more, since only this says which of the file's weights found no place.
            unused = adapted.load_adapter(adapter, adapted.active_adapter).unexpected_keys
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise _cannot_load(adapter, error) from error
    if unused:
        raise ConfigError(
            f"the model has no place for {len(unused)} of its weights, such as {unused[0]}",
            key="adapter",
            value=adapter,
            remedy=_REMEDY,
        )
    return adapted.eval()


def base_of(folder: str) -> str | None:
    """The model that an adapter was trained on, as it says; None where there is no adapter.

    Args:
        folder: A directory or a hub id, of a model or an adapter.

    Raises:
        ConfigError: It does not say so, a model's weights lie there too, or it cannot be loaded as an adapter.
        PluginError: peft is missing.
    """
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(folder) is None:
        return None
    check_adapter(folder)
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    whole = [*Path(folder).glob("model*.safetensors"), *Path(folder).glob("pytorch_model*.bin")]
    if base and not whole:
        return str(base)
    raise ConfigError(
        "both a model and an adapter lie there" if whole else "an adapter that does not name its model",
        key="model",
        value=folder,
        remedy="Name the model by itself; for an audit, as --reference, and the adapter by --adapter.",
    )


def _cannot_load(adapter: str, error: Exception) -> ConfigError:
    return ConfigError(f"cannot be loaded ({error})", key="adapter", value=adapter, remedy=_REMEDY)
