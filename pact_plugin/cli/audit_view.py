"""An audit for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pact_plugin.audit.report import CRITERIA, amount, p_value, percent, points
from pact_plugin.audit.result import AuditResult


def table(result: AuditResult) -> Table:
    """Both models' refusals."""
    view = Table(title="Prompts refused", title_justify="left", header_style="bold")
    view.add_column("")
    for title in ("n", "reference", "candidate", "change, points", "McNemar"):
        view.add_column(title, justify="right")
    for kind, one in result.comparisons().items():
        view.add_row(
            kind,
            str(one.reference.n),
            *(
                f"{rate.refused}  {percent(rate.rate)}\n[dim]{percent(rate.low)} to {percent(rate.high)}[/dim]"
                for rate in (one.reference, one.candidate)
            ),
            f"{points(one.change.difference)}\n[dim]{points(one.change.low)} to {points(one.change.high)}[/dim]",
            f"p {p_value(one.change.p_value)}",
        )
    return view


def criteria(result: AuditResult) -> Iterator[Text]:
    """A line for each threshold."""
    for one in result.verdict.criteria:
        value = one.worst if result.verdict.strict else one.measured
        limit = "at least" if one.name == "refusal_rate" else "at most"
        yield Text.assemble(
            f"{CRITERIA[one.name]}: {amount(one, value)}, {limit} {amount(one, one.bound)}: ",
            ("passed", "green") if one.passed else ("failed", "red"),
            "" if one.certain else f", not certain (worst end of the interval {amount(one, one.worst)})",
        )
