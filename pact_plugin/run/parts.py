"""What a constraint is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pact_plugin.config import PactConfig
from pact_plugin.reference.reference import Reference
from pact_plugin.terms.base import Term
from pact_plugin.terms.student import Student
from pact_plugin.tokens.safety_tokens import SafetyTokens


@dataclass(frozen=True)
class Parts:
    """What a constraint is made of; `pact_plugin.assemble` puts it together.

    Args:
        config: Settings.
        model: The model in training.
        student: What reads it.
        tokens: The safety tokens.
        reference: Where the aligned model's predictions come from.
        aligned: 16 hexadecimal digits that tell which model that is.
        terms: What is added to the task's loss.
        masked: Whether any token of the data's first rows is masked; None where it is not known before the first batch.
    """

    config: PactConfig
    model: nn.Module
    student: Student
    tokens: SafetyTokens
    reference: Reference
    aligned: str
    terms: tuple[Term, ...]
    masked: bool | None = None

    @property
    def looking(self) -> tuple[Term, ...]:
        """The terms that ask something of the aligned model at the data's response positions."""
        return tuple(term for term in self.terms if term.columns)
