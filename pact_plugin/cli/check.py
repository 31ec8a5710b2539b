"""`pact-plugin check`: would a configuration's run be constrained?"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pact_plugin.cli.console import Console
from pact_plugin.errors import PluginError
from pact_plugin.hooks.manager import find_config_check
from pact_plugin.hooks.spec import ConfigCheck

if TYPE_CHECKING:
    from pact_plugin.run.check_report import CheckReport

_WIDTH = 80


def check(
    config: Annotated[
        Path,
        typer.Argument(help="A configuration of Axolotl, ms-swift or LLaMA-Factory."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else, for scripts.")
    ] = False,
) -> None:
    """Say whether a run would be constrained, before it starts; exit status 1 and remedies if not."""
    if not would_be_constrained(config, as_json=as_json):
        raise typer.Exit(1)


def would_be_constrained(config: Path, *, as_json: bool = False) -> bool:
    """Check a configuration by the one integration that can, and print its report.

    Raises:
        PluginError: No integration is installed that can, or it lacks a package.
    """
    reader = reader_of(config)
    with _missing_packages_named():
        report = reader.check(config)
    if as_json:
        print(json.dumps({"constrained": report.constrained, **asdict(report)}, default=str))
    else:
        _show(report, config)
    return report.constrained


def reader_of(config: Path) -> ConfigCheck:
    """The check that reads a configuration.

    Raises:
        PluginError: There is none, more than one, or a package is missing.
    """
    with _missing_packages_named():
        return find_config_check(config)


@contextmanager
def _missing_packages_named() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        problem = f"checking a configuration needs the package {error.name}"
        raise PluginError(problem, remedy="pip install 'pact-plugin[cli]'") from error


def _show(report: CheckReport, config: Path) -> None:
    """Print a report in lines of 80 columns, in which no path or key is cut."""
    console = Console(highlight=False, soft_wrap=True)
    for finding in report.findings:
        value = finding.value
        shown = "" if value is None else f": {str(value).lower() if isinstance(value, bool) else value}"
        _print(console, f"{finding.key}{shown}", "✗ ", "bold red")
        _print(console, f"{finding.problem[:1].upper()}{finding.problem[1:]}.", "  ")
        _print(console, finding.remedy, "  → ", "green")
    for line in (*report.facts(), *report.notes):
        _print(console, line, "· ", "dim")
    for line in report.unchecked:
        _print(console, f"Not checked: {line}", "? ", "yellow")
    _print(console, f"{config}: {report.verdict()}", "", "bold red" if report.findings else "bold green")


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
