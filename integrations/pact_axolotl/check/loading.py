"""The tokenizers of the models that an Axolotl configuration names; nothing else of these is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_transformers.errors import missing_folder, unnamed_model
from pact_transformers.preflight import is_missing_folder

from pact_plugin.errors import ConfigError


class NotAvailableError(Exception):
    """A tokenizer that could not be loaded here, which says little about where the run will be."""


def tokenizer(cfg: Mapping[str, Any]) -> Any:
    """The tokenizer that Axolotl would load, before it adds tokens.

    Raises:
        ConfigError: A folder that is not there, or no tokenizer of that type.
        NotAvailableError: It is not in the cache and the hub cannot be reached, or it needs a missing package.
    """
    import transformers

    key = next((key for key in ("tokenizer_config", "base_model_config") if cfg.get(key)), "base_model")
    kind = cfg.get("tokenizer_type") or "AutoTokenizer"
    loader = getattr(transformers, kind, None)
    if loader is None:
        raise ConfigError(
            "transformers has no such tokenizer", key="tokenizer_type", value=kind, remedy="Remove it."
        )
    return _load(loader.from_pretrained, key, cfg.get(key), cfg)


def tokenizer_of(name: str) -> Any:
    """The tokenizer of a reference; raises as `tokenizer` does."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, "pact.reference", name, {})


def missing_folders(cfg: Mapping[str, Any]) -> Iterator[ConfigError]:
    """The folders of models, adapters and tokenizers that the run would start from, and that are not there."""
    for key in ("base_model", "base_model_config", "tokenizer_config", "lora_model_dir"):
        name = cfg.get(key)
        if isinstance(name, str) and is_missing_folder(name):
            yield missing_folder(key, name)


def _load(load: Callable[..., Any], key: str, name: Any, cfg: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or not name:
        raise unnamed_model(key, name)
    if is_missing_folder(name):
        raise missing_folder(key, name)
    options: dict[str, Any] = {"trust_remote_code": cfg.get("trust_remote_code") is True}
    if cfg.get("revision_of_model"):
        options["revision"] = cfg["revision_of_model"]
    try:
        try:
            return load(name, local_files_only=True, **options)
        except OSError:
            from pact_transformers.loading import hub_answers  # which loads torch

            if Path(name).is_dir() or not hub_answers():
                raise
            return load(name, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NotAvailableError(f"`{key}: {name}` could not be loaded here ({reason[0]})") from error
