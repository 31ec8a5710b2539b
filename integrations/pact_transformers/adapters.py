"""Loading a PEFT adapter onto a model, and nothing less than the whole of it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_plugin.errors import ConfigError, PluginError
from pact_plugin.model.adapters import not_in_decoder

if TYPE_CHECKING:
    from torch import Tensor

_REMEDY = (
    "Give the directory or hub id of an adapter that was trained on this model. "
    "For an audit: name it as --candidate, or merge it into its model first."
)


def check_adapter(adapter: str) -> None:
    """Refuse what cannot be loaded as an adapter, before any model is loaded.

    Args:
        adapter: A directory or a hub id.

    Raises:
        ConfigError: There is no such adapter, or it acts in PEFT's own forward pass alone.
        PluginError: peft is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise PluginError("an adapter needs the package peft", remedy="pip install peft")
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise _cannot_load(adapter, error) from error
    if (kind := not_in_decoder(config)) is not None:
        raise ConfigError(
            f"{kind} acts in PEFT's own forward pass alone, and cannot be audited",
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
        weights = stored_weights(adapter)
        _require_rows(model, weights, adapter)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, adapter)
            # Loaded once more, since only this says which of the file's weights found no place.
            unused = adapted.load_adapter(adapter, adapted.active_adapter).unexpected_keys
            unused = [name for name in unused if not _stored_twice(name, weights)]
    except (OSError, ValueError, IndexError, RuntimeError, UserWarning) as error:
        raise _cannot_load(adapter, error) from error
    if unused:
        raise ConfigError(
            f"the model has no place for {len(unused)} of its weights, such as {unused[0]}",
            key="adapter",
            value=adapter,
            remedy=_REMEDY,
        )
    return adapted.eval()


def stored_weights(adapter: str) -> dict[str, Tensor]:
    """The weights of an adapter by their names, on the CPU.

    Raises:
        OSError, ValueError: They cannot be read.
    """
    from peft.utils import load_peft_weights

    weights: dict[str, Tensor] = load_peft_weights(adapter, device="cpu")
    return weights


def with_tokens_of(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """A model with the tokens that an adapter was trained with, where the adapter stores both ends of all of them.

    Args:
        model: What the adapter was trained on, without the tokens that were added.
        weights: The adapter's; PEFT stores embeddings and head where tokens were added.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = _rows(model, embeddings, weights)
    if rows is not None and (head.weight is embeddings.weight or _rows(model, head, weights) == rows):
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def _require_rows(model: Any, weights: Mapping[str, Tensor], adapter: str) -> None:
    """Refuse an adapter that was trained with other tokens than the model has."""
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        own, rows = len(part.weight), _rows(model, part, weights)
        if rows not in (None, own):
            raise ConfigError(
                f"it was trained with {rows} tokens, and the model has {own}",
                key="adapter",
                value=adapter,
                remedy=_REMEDY,
            )


def _stored_twice(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether PEFT has stored the same under another name, too, as of embeddings that are tied or trained whole."""
    own = weights.get(name)
    return own is not None and any(other.equal(own) for key, other in weights.items() if key != name)


def _rows(model: Any, embeddings: Any, weights: Mapping[str, Tensor]) -> int | None:
    """How many tokens an adapter stores of an embedding or of the head; None where it stores neither."""
    prefix = next(f"base_model.model.{name}." for name, one in model.named_modules() if one is embeddings)
    for name, weight in weights.items():
        inner = name.removeprefix(prefix).removeprefix("token_adapter.").removeprefix("base_layer.")
        if name.startswith(prefix) and inner == "weight":
            return len(weight)
    return None


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
