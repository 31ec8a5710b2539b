"""Loading a PEFT adapter onto a model, and nothing less than the whole of it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_plugin.errors import ConfigError, PluginError
from pact_transformers.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        ConfigError: There is no such adapter, or it does not fit the model in every weight.
        PluginError: peft is missing.
    """
    check_adapter(adapter)
    from peft import PeftModel

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


def adapter_tokenizer(adapter: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside an adapter, with its chat template; None if there is none."""
    return load_tokenizer(adapter) if (Path(adapter) / "tokenizer_config.json").is_file() else None


def _cannot_load(adapter: str, error: Exception) -> ConfigError:
    return ConfigError(f"cannot be loaded ({error})", key="adapter", value=adapter, remedy=_REMEDY)
