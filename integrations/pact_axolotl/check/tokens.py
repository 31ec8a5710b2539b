"""The safety tokens that a run would have, and the tokenizers that they, or a reference, must fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_transformers.errors import other_tokenizer
from pact_transformers.preflight import configured_tokens

from pact_axolotl.check import loading
from pact_axolotl.check.report import Report
from pact_plugin.config import PactConfig
from pact_plugin.data.tokenizers import require_usable
from pact_plugin.errors import ConfigError, PactError
from pact_plugin.run.receipt import TOKENS_FILE
from pact_plugin.terms.build import asks_of_tokenizer, check_tokenizer
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint


def check_tokens(
    cfg: Mapping[str, Any], settings: PactConfig, checkpoint: Path | None, report: Report
) -> None:
    """Put what is known of the run's safety tokens into a report, and what is wrong with them."""
    named = settings.safety_tokens
    try:
        tokens = configured_tokens(settings)
    except PactError:  # reported already
        return
    source = "file" if tokens is not None else "model" if named is None else "plugin"
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
    cfg: Mapping[str, Any], settings: PactConfig, tokens: SafetyTokens | None, report: Report
) -> None:
    try:
        tokenizer = loading.tokenizer(cfg)
        require_usable(tokenizer)
    except ConfigError as error:
        report.find([error])
        return
    except loading.NotAvailableError as error:
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
    cfg: Mapping[str, Any], settings: PactConfig, report: Report
) -> Iterator[PactError]:
    """An error where the reference that is named has another tokenizer than the model in training."""
    try:
        both = loading.tokenizer(cfg), loading.tokenizer_of(settings.reference)
        own, other = map(tokenizer_fingerprint, both)
    except ConfigError as error:
        report.find([error])
        return
    except loading.NotAvailableError as error:
        report.unchecked.append(f"whether the reference has the same tokenizer, as {error}")
        return
    if own != other:
        yield other_tokenizer(settings.reference)
