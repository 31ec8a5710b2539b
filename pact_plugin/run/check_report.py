"""What a check of a training configuration found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pact_plugin.config import PactConfig
from pact_plugin.errors import PactError


@dataclass(frozen=True)
class Finding:
    """A reason why a run would fail or would not be constrained."""

    key: str
    value: Any
    problem: str
    remedy: str


@dataclass
class CheckReport:
    """The answer of `pact-plugin check`; an integration may add fields of its own.

    Args:
        findings: Every reason why the run would fail or would not be constrained.
        notes: What else is worth knowing.
        unchecked: What could not be checked here.
    """

    block: ClassVar[str] = "pact."
    """What stands before the names of PACT's settings in the configuration."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def constrained(self) -> bool:
        """Whether nothing was found that speaks against it."""
        return not self.findings

    def find(self, errors: Iterable[PactError], *, block: bool = False) -> None:
        """Add errors, each once; those of PACT's settings, its `block`, get the full name of their key."""
        for error in errors:
            key = error.key or "config"
            if block and key != "pact":
                key = f"{self.block}{key}"
            self.add(Finding(key, error.value, error.problem, error.remedy))

    def find_mixed(self, errors: Iterable[PactError]) -> None:
        """The same of errors whose keys are settings of PACT, with full names, or others."""
        for error in errors:
            name = (error.key or "").partition(".")[0]
            self.find([error], block=name in PactConfig.model_fields)

    def add(self, finding: Finding) -> None:
        """Add a finding, unless it was found already (a framework's own reading may find again what ours found)."""
        if all((finding.problem, finding.remedy) != (one.problem, one.remedy) for one in self.findings):
            self.findings.append(finding)

    def facts(self) -> Iterable[str]:
        """What is known of the run, before the notes."""
        return ()

    def verdict(self) -> str:
        """All of it in one clause."""
        count = len(self.findings)
        if count:
            reasons = "reason" if count == 1 else "reasons"
            return f"{count} {reasons} why this run would fail or go unconstrained"
        if self.unchecked:
            return "as far as it could be checked, this run will be constrained"
        return "this run will be constrained"
