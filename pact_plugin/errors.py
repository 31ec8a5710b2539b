"""Errors: each names the key or argument, the value and the remedy."""

from __future__ import annotations

from typing import Any

ROUNDED = " A resumed run needs the model's answers, in its `_pact_store` or $PACT_CACHE: new ones differ by rounding."
"""A remedy that follows another."""


class PactError(Exception):
    """Base of every error that pact-plugin raises on purpose.

    Args:
        problem: What is wrong, in one sentence without the final full stop.
        key: The configuration key or argument that is wrong.
        value: What it was set to.
        remedy: What the user can do about it, as a sentence.
    """

    def __init__(self, problem: str, *, key: str | None = None, value: Any = None, remedy: str) -> None:
        self.problem, self.key, self.value, self.remedy = problem, key, value, remedy
        head = "" if key is None else f"{key}={value!r}: " if value is not None else f"{key}: "
        super().__init__(f"{head}{problem}. {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """So that one rank's error can be raised on every rank."""
        return _rebuilt, (type(self), self.problem, self.key, self.value, self.remedy)


def _rebuilt(kind: type[PactError], problem: str, key: str | None, value: Any, remedy: str) -> PactError:
    return kind(problem, key=key, value=value, remedy=remedy)


class ConfigError(PactError):
    """A configuration key is unknown, or its value cannot be used."""


class ShapeError(PactError):
    """Arrays whose shapes or types do not fit together."""


class TokenFileError(PactError):
    """A safety-token file that is missing, corrupted, or not of this format."""


class TokenizerMismatchError(PactError):
    """Safety tokens that belong to another tokenizer."""


class ModelStructureError(PactError):
    """A model whose decoder or language-model head cannot be found or reproduced."""


class ReferenceModelError(PactError):
    """A reference model that cannot exist, or does not fit the model in training."""


class StoreError(PactError):
    """A stored reference that belongs to something else, is damaged, or lacks a document."""


class NoResponseError(PactError):
    """No response position where at least one is needed."""


class NonFiniteError(PactError):
    """NaN or infinity in the reference or in the constraint."""


class HiddenStatesNotSeenError(PactError):
    """A forward pass in which the decoder's final hidden states were not seen."""


class AdapterError(PactError):
    """A trainer that no adapter knows, that two know, or that cannot be constrained."""


class PluginError(PactError):
    """A pact-plugin plugin that is misspelt, duplicated, or fails to import."""


class ReceiptError(PactError):
    """A receipt that is missing, unreadable, or shows unconstrained steps."""


class AuditError(PactError):
    """A model in training that cannot be audited, or of which no checkpoint keeps to the thresholds."""


class JudgeError(PactError):
    """A judge that is unknown, cannot be loaded or set up so, or whose answers cannot be read."""
