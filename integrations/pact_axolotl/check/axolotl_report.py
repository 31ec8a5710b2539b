"""What a check of an Axolotl configuration found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pact_axolotl.check.reference_plan import ReferencePlan
from pact_plugin.run.check_report import CheckReport


@dataclass
class AxolotlReport(CheckReport):
    """The answer of `pact-plugin check`.

    Args:
        reference: The reference that the run would have.
        tokens: Where its safety tokens would come from: `source` (`file`, `model` or `checkpoint`), with what is
            known of them.
    """

    reference: ReferencePlan | None = None
    tokens: dict[str, Any] | None = None

    def facts(self) -> Iterator[str]:
        """The reference and the safety tokens."""
        if self.reference is not None:
            yield f"Reference: {self.reference.kind}, {self.reference.why}"
        if self.tokens is not None:
            yield f"Safety tokens: {_tokens(self.tokens)}"


def _tokens(tokens: dict[str, Any]) -> str:
    source = tokens["source"]
    if source == "file":
        return f"{tokens['count']} ({tokens['digest']}) of {tokens['name']}"
    if source == "checkpoint":
        return f"those that the run began with, {tokens['name']}"
    return "chosen from the model itself when training starts"
