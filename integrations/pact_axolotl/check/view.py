"""The report of a check for the eye: lines of 80 columns, in which no path or key is cut."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pact_axolotl.check.memory import readable
from pact_axolotl.check.reference_plan import ReferencePlan
from pact_axolotl.check.report import Report

_WIDTH = 80


def show(report: Report, config: Path, console: Console) -> None:
    """Print a report.

    Args:
        report: The report.
        config: The file that it is about.
        console: Where to; should wrap softly, so that a terminal can mark long paths as a whole.
    """
    for finding in report.findings:
        value = "" if finding.value is None else f": {_written(finding.value)}"
        _print(console, f"{finding.key}{value}", "✗ ", "bold red")
        _print(console, f"{finding.problem[:1].upper()}{finding.problem[1:]}.", "  ")
        _print(console, finding.remedy, "  → ", "green")
    for line in (*_facts(report), *report.notes):
        _print(console, line, "· ", "dim")
    for line in report.unchecked:
        _print(console, f"Not checked: {line}", "? ", "yellow")
    _print(console, _verdict(report, config), "", "bold red" if report.findings else "bold green")


def _verdict(report: Report, config: Path) -> str:
    count = len(report.findings)
    if count:
        return f"{config}: {count} {'reason' if count == 1 else 'reasons'} why this run would fail or go unconstrained"
    if report.unchecked:
        return f"{config}: as far as it could be checked, this run will be constrained"
    return f"{config}: this run will be constrained"


def _facts(report: Report) -> list[str]:
    lines = []
    if report.reference is not None:
        lines.append(f"Reference: {report.reference.kind}, {report.reference.why}{_memory(report.reference)}")
    if report.tokens is not None:
        lines.append(f"Safety tokens: {_tokens(report.tokens)}")
    return lines


def _memory(plan: ReferencePlan) -> str:
    if plan.bytes == 0:
        return "; no memory"
    if plan.bytes is None or plan.model_bytes is None or plan.device is None:
        return "; as large as the adapter" if plan.source == "copy" else ""
    return (
        f"; about {readable(plan.bytes)} beside the {readable(plan.model_bytes)} of the model's weights, with "
        f"{readable(plan.device.free)} free ({plan.device.name})"
    )


def _tokens(tokens: dict[str, Any]) -> str:
    source = tokens["source"]
    if source == "file":
        return f"{tokens['count']} ({tokens['digest']}) of {tokens['name']}"
    if source == "plugin":
        return f"from the plugin {tokens['name']}"
    if source == "checkpoint":
        return f"those that the run began with, {tokens['name']}"
    return "chosen from the model itself when training starts"


def _written(value: Any) -> str:
    """A value as YAML has it, roughly."""
    return str(value).lower() if isinstance(value, bool) else str(value)


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
