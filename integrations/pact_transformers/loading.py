"""Loading causal language models and tokenizers: a directory, a hub id or a GGUF file."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pact_plugin.errors import ConfigError
from pact_transformers.adapters import base_of, load_adapter, stored_weights, with_tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REMEDY = "Give a directory, a .gguf file or a hub id of a causal language model."


def load_causal_lm(
    model: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """A causal language model in eval mode. An adapter comes on the model that it names, in every weight.

    That model then has the tokens that the adapter was trained with, and sees images where it did.

    Args:
        model: A directory or hub id, of a model or a PEFT adapter, a `.gguf` file (its weights are dequantised, so that
            the model can be trained and saved), or a directory that holds just one.
        dtype: Of the weights: `auto` (as stored; float32 for GGUF), a name such as `bfloat16`, or a torch
            dtype.
        device: Where to put it; by default the first accelerator, or else the CPU.

    Raises:
        ConfigError: There is no such model, dtype or device, or an adapter does not fit its model in every weight.
        PluginError: peft is missing, and it is an adapter.
    """
    return _load(model, dtype, device)


def _load(
    model: str | os.PathLike[str],
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    *,
    seeing: bool = False,
) -> PreTrainedModel:
    """See `load_causal_lm`; `seeing` for a model of images and text, where there is its language part alone, too."""
    folder, options = _resolve(model)
    # transformers would leave out an adapter's weights that find no place, with a line in the log.
    try:
        base = None if options else base_of(folder)
        weights = {} if base is None else stored_weights(folder)
    except (OSError, ValueError) as error:
        raise _cannot_load("model", model, error) from error
    if base is not None:
        below = _load(base, dtype, device, seeing=any(".language_model." in name for name in weights))
        return load_adapter(with_tokens_of(below, weights), folder).get_base_model()
    place = _device(device)
    stored_dtype = dtype if dtype == "auto" else floating_dtype(dtype)
    if options:
        options |= _dequantized()
        stored_dtype = torch.float32 if stored_dtype == "auto" else stored_dtype
    try:
        loaded = _auto_class(folder, options, seeing).from_pretrained(folder, dtype=stored_dtype, **options)
    except (OSError, ValueError) as error:
        raise _cannot_load("model", model, error) from error
    quantizer = getattr(loaded, "hf_quantizer", None)
    if options and quantizer is not None:  # the weights are plain; the mark would forbid training and saving
        quantizer.remove_quantization_config(loaded)
    return loaded.to(place).eval()


def check_model(model: str | os.PathLike[str]) -> None:
    """Refuse what holds no model, before one is loaded; whether the weights are whole is not looked at.

    Raises:
        ConfigError: There is no configuration, or a folder has no weights.
        PluginError: It is an adapter, and peft is missing.
    """
    from transformers import AutoConfig

    folder, options = _resolve(model)
    if options:
        return
    try:
        if (base := base_of(folder)) is not None:
            return check_model(base)
        AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _cannot_load("model", model, error) from error
    if Path(folder).is_dir() and not any(
        file.suffix in (".safetensors", ".bin") for file in Path(folder).iterdir()
    ):
        raise ConfigError("there are no weights", key="model", value=str(model), remedy=_REMEDY)


def _auto_class(folder: str, options: dict[str, Any], seeing: bool) -> Any:
    """Of checkpoints of images and text some have a class of their language part alone, with other names (Qwen3.5)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if options:
        return AutoModelForCausalLM
    kind = type(AutoConfig.from_pretrained(folder))
    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if sees and (seeing or kind not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def load_tokenizer(model: str | os.PathLike[str], **named: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of what `load_causal_lm` would load, an adapter's or its model's; `named` is for `from_pretrained`.

    Raises:
        ConfigError: There is no such tokenizer.
    """
    from transformers import AutoTokenizer

    folder, options = _resolve(model)
    try:
        alone = Path(folder).is_dir() and not _tokenizer_beside(folder) and not options
        if alone and (base := base_of(folder)) is not None:
            return load_tokenizer(base, **named)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options, **named)
        if getattr(tokenizer, "chat_template", None) is None and (template := _processors_template(folder)):
            tokenizer.chat_template = template
        return tokenizer
    except (OSError, ValueError) as error:
        raise _cannot_load("tokenizer", model, error) from error


def _processors_template(folder: str) -> str | None:
    """The chat template of a processor as older models that see have it: in a file that tokenizers do not read."""
    file = Path(folder) / "chat_template.json"
    if not file.is_file():
        return None
    template: str | None = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    return template


def adapter_tokenizer(adapter: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside an adapter, with its chat template; None if there is none."""
    return load_tokenizer(adapter) if _tokenizer_beside(adapter) else None


def _tokenizer_beside(folder: str) -> bool:
    return (Path(folder) / "tokenizer_config.json").is_file()


def _resolve(model: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """What to give to `from_pretrained`: a directory or hub id, and `gguf_file` if it is GGUF."""
    path = Path(model)
    if path.is_dir() and not (path / "config.json").exists():
        files = list(path.glob("*.gguf"))
        if len(files) > 1:
            names = ", ".join(sorted(file.name for file in files))
            raise ConfigError(
                f"several GGUF files: {names}", key="model", value=str(path), remedy="Name one of them."
            )
        path = files[0] if files else path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError("there is no such file", key="model", value=str(path), remedy=_REMEDY)
        if importlib.util.find_spec("gguf") is None:
            remedy = "pip install gguf"
            raise ConfigError(
                "reading GGUF needs the package gguf", key="model", value=str(path), remedy=remedy
            )
        return str(path.parent), {"gguf_file": path.name}
    return str(path), {}


def _dequantized() -> dict[str, Any]:
    """The option that unpacks GGUF weights; releases of transformers without it always do."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def floating_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a name such as `bfloat16`.

    Raises:
        ConfigError: It is none, or not a floating-point one.
    """
    found = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            "not a floating-point type", key="dtype", value=name, remedy="Such as bfloat16 or float32."
        )
    return found


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        raise ConfigError(
            f"cannot be used ({error})", key="device", value=str(name), remedy="Such as cpu."
        ) from error


def _cannot_load(key: str, model: object, error: Exception) -> ConfigError:
    return ConfigError(f"cannot be loaded ({error})", key=key, value=str(model), remedy=_REMEDY)
