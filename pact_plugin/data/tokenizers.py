"""Which tokenizers can be used."""

from __future__ import annotations

from typing import Any

from pact_plugin.errors import ConfigError

_MISTRAL_COMMON = "MistralCommon"
"""How the names of transformers' classes around mistral-common begin."""


def require_usable(tokenizer: Any) -> None:
    """Refuse a tokenizer of mistral-common.

    It names no added tokens, has no chat template, and reads its own control tokens, written out, as plain text.

    Raises:
        ConfigError: It is one.
    """
    if any(kind.__name__.startswith(_MISTRAL_COMMON) for kind in type(tokenizer).__mro__):
        raise ConfigError(
            "mistral-common's tokenizers cannot be given a chat as text",
            key="tokenizer",
            value=type(tokenizer).__name__,
            remedy="Use the model's Hugging Face tokenizer (`tokenizer.json`), which `AutoTokenizer` loads where "
            "mistral-common is not installed.",
        )
