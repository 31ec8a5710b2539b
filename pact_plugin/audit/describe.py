"""Which models were compared, with what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pact_plugin.audit import result
from pact_plugin.audit.reading import Answers
from pact_plugin.data.chat_template import has_chat_template
from pact_plugin.data.generation import device_of
from pact_plugin.errors import TokenizerMismatchError
from pact_plugin.tokens.candidates import model_name
from pact_plugin.tokens.safety_tokens import tokenizer_fingerprint


def describe(model: Any, tokenizer: Any, said: Answers, name: str | None) -> result.Model:
    """Which model this is, and how it was asked."""
    config = getattr(model, "config", None)
    template = str(tokenizer.chat_template) if has_chat_template(tokenizer) else None
    return result.Model(
        name=name or model_name(model),
        revision=getattr(config, "_commit_hash", None),
        parameters=sum(one.numel() for one in model.parameters()),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        device=str(device_of(model)),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        empty_answers=sum(not answer for answer in said.tokens),
    )


def require_same_vocabulary(reference: str, candidate: str) -> None:
    """Refuse a candidate whose answers and safety tokens cannot be compared with the reference's.

    Args:
        reference: Fingerprint of the reference's tokenizer.
        candidate: That of the candidate's.

    Raises:
        TokenizerMismatchError: They have different vocabularies.
    """
    if reference != candidate:
        raise TokenizerMismatchError(
            f"the candidate's tokenizer (fingerprint {candidate[:12]}...) "
            f"is not the reference's ({reference[:12]}...)",
            key="candidate",
            remedy="Compare a model with the one that it was tuned from.",
        )


def versions(*packages: str) -> Iterator[tuple[str, str]]:
    """The packages that are installed, with their versions."""
    for name in packages:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
