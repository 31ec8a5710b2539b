"""The safety tokens that a run would have, and the tokenizers that they, or a reference, must fit.

Of the models that a configuration names, nothing but the tokenizers is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_transformers.errors import missing_folder, other_tokenizer, unnamed_model
from pact_transformers.hub import hub_answers
from pact_transformers.preflight import is_missing_folder

from pact_axolotl.check.axolotl_report import AxolotlReport
from pact_plugin.config import PactConfig
from pact_plugin.data.tokenizers import require_usable
from pact_plugin.errors import ConfigError, PactError
from pact_plugin.run.receipt import TOKENS_FILE
from pact_plugin.terms.build import asks_of_tokenizer, check_tokenizer
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint


class _NotAvailableError(Exception):
    """A tokenizer that could not be loaded here, which says little about where the run will be."""


def missing_folders(cfg: Mapping[str, Any]) -> Iterator[ConfigError]:
    """The folders of models, adapters and tokenizers that the run would start from, and that are not there."""
    for key in ("base_model", "base_model_config", "tokenizer_config", "lora_model_dir"):
        name = cfg.get(key)
        if isinstance(name, str) and is_missing_folder(name):
            yield missing_folder(key, name)


def check_tokens(
    cfg: Mapping[str, Any], settings: PactConfig, checkpoint: Path | None, report: AxolotlReport
) -> None:
    """Put what is known of the run's safety tokens into a report, and what is wrong with them."""
    named = settings.safety_tokens
    try:
        tokens = settings.named_tokens()
    except PactError:  # reported already
        return
    source = "model" if tokens is None else "file"
    if named is None and checkpoint is not None and (checkpoint / TOKENS_FILE).is_file():
        source, named = "checkpoint", str(checkpoint / TOKENS_FILE)
    report.tokens = {"source": source}
    if named is not None:
        report.tokens["name"] = str(named)
    if tokens is not None:
        report.tokens |= {"count": len(tokens), "digest": tokens.digest}
    if tokens is not None or asks_of_tokenizer(settings):
        _check_tokenizer(cfg, settings, tokens, report)


def _check_tokenizer(
    cfg: Mapping[str, Any], settings: PactConfig, tokens: SafetyTokens | None, report: AxolotlReport
) -> None:
    try:
        tokenizer = _tokenizer(cfg)
        require_usable(tokenizer)
    except ConfigError as error:
        report.find([error])
        return
    except _NotAvailableError as error:
        report.unchecked.append(f"whether the safety tokens fit the tokenizer, as {error}")
        return
    try:
        if tokens is not None:
            tokens.check(tokenizer)
        # With `chat_template`, Axolotl gives the tokenizer another one when the run starts.
        if cfg.get("chat_template") in (None, "tokenizer_default"):
            check_tokenizer(settings, tokenizer)
    except PactError as error:
        report.find([error], block=True)


def reference_tokenizer_problems(
    cfg: Mapping[str, Any], settings: PactConfig, report: AxolotlReport
) -> Iterator[PactError]:
    """An error where the reference that is named has another tokenizer than the model in training."""
    try:
        both = _tokenizer(cfg), _tokenizer_of(settings.reference)
        own, other = map(tokenizer_fingerprint, both)
    except ConfigError as error:
        report.find([error])
        return
    except _NotAvailableError as error:
        report.unchecked.append(f"whether the reference has the same tokenizer, as {error}")
        return
    if own != other:
        yield other_tokenizer(settings.reference)


def _tokenizer(cfg: Mapping[str, Any]) -> Any:
    """The tokenizer that Axolotl would load, before it adds tokens.

    Raises:
        ConfigError: A folder that is not there, or no tokenizer of that type.
        _NotAvailableError: It is not in the cache and the hub cannot be reached, or it needs a missing package.
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


def _tokenizer_of(name: str) -> Any:
    """The tokenizer of a reference, as the run loads it; raises as `_tokenizer` does."""
    from pact_transformers.loading import load_tokenizer

    return _load(load_tokenizer, "pact.reference", name, {})


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
        except (OSError, ConfigError):
            if Path(name).is_dir() or not hub_answers():
                raise
            return load(name, **options)
    except (OSError, ValueError, ImportError, ConfigError) as error:
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise _NotAvailableError(f"`{key}: {name}` could not be loaded here ({reason[0]})") from error
