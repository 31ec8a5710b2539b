"""What a check found: reasons against a run, facts about it, and what could not be checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pact_axolotl.check.reference_plan import ReferencePlan
from pact_plugin.errors import PactError


@dataclass(frozen=True)
class Finding:
    """A reason why a run would fail or would not be constrained."""

    key: str
    value: Any
    problem: str
    remedy: str


@dataclass
class Report:
    """The answer of `pact-plugin check`.

    Args:
        findings: Every reason why the run would fail or would not be constrained.
        notes: What else is worth knowing.
        unchecked: What could not be checked here.
        reference: The reference that the run would have.
        tokens: Where its safety tokens would come from: `source` (`file`, `model`, `plugin` or `checkpoint`), with
            what is known of them.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    reference: ReferencePlan | None = None
    tokens: dict[str, Any] | None = None

    @property
    def constrained(self) -> bool:
        """Whether nothing was found that speaks against it."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"constrained": self.constrained, **asdict(self)}

    def find(self, errors: Iterable[PactError], *, block: bool = False) -> None:
        """Add errors, each once; those of the `block` get the full name of their key."""
        for error in errors:
            key = error.key or "config"
            if block and key != "pact":
                key = f"pact.{key}"
            self.add(Finding(key, error.value, error.problem, error.remedy))

    def add(self, finding: Finding) -> None:
        """Add a finding, unless it was found already (Axolotl's reading finds again what ours found)."""
        if all((finding.problem, finding.remedy) != (one.problem, one.remedy) for one in self.findings):
            self.findings.append(finding)
