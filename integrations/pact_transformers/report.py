"""What a check of a training configuration found, for the eye and for scripts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pact_plugin.errors import PactError

_WIDTH = 80


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
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def constrained(self) -> bool:
        """Whether nothing was found that speaks against it."""
        return not self.findings

    def find(self, errors: Iterable[PactError], *, block: bool = False) -> None:
        """Add errors, each once; those of PACT's own `block` get the full name of their key."""
        for error in errors:
            key = error.key or "config"
            if block and key != "pact":
                key = f"pact.{key}"
            self.add(Finding(key, error.value, error.problem, error.remedy))

    def add(self, finding: Finding) -> None:
        """Add a finding, unless it was found already (a framework's own reading may find again what ours found)."""
        if all((finding.problem, finding.remedy) != (one.problem, one.remedy) for one in self.findings):
            self.findings.append(finding)

    def facts(self) -> Iterable[str]:
        """What is known of the run, before the notes."""
        return ()

    def show(self, config: Path, *, as_json: bool) -> None:
        """Print it: lines of 80 columns in which no path or key is cut, or one JSON object.

        Args:
            config: The file that it is about.
            as_json: Which.
        """
        if as_json:
            print(json.dumps({"constrained": self.constrained, **asdict(self)}, default=str))
            return
        console = Console(highlight=False, soft_wrap=True)
        for finding in self.findings:
            value = finding.value
            shown = "" if value is None else f": {str(value).lower() if isinstance(value, bool) else value}"
            _print(console, f"{finding.key}{shown}", "✗ ", "bold red")
            _print(console, f"{finding.problem[:1].upper()}{finding.problem[1:]}.", "  ")
            _print(console, finding.remedy, "  → ", "green")
        for line in (*self.facts(), *self.notes):
            _print(console, line, "· ", "dim")
        for line in self.unchecked:
            _print(console, f"Not checked: {line}", "? ", "yellow")
        _print(console, f"{config}: {self._verdict()}", "", "bold red" if self.findings else "bold green")

    def _verdict(self) -> str:
        count = len(self.findings)
        if count:
            reasons = "reason" if count == 1 else "reasons"
            return f"{count} {reasons} why this run would fail or go unconstrained"
        if self.unchecked:
            return "as far as it could be checked, this run will be constrained"
        return "this run will be constrained"


def _print(console: Console, text: str, head: str, style: str = "") -> None:
    lines = textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(Text(line, style=style))
