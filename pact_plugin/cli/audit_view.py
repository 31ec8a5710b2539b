"""An audit for the terminal."""

from __future__ import annotations

from rich.table import Table

from pact_plugin.audit.report import CRITERIA, p_value, percent, points
from pact_plugin.audit.result import AuditResult


def table(result: AuditResult) -> Table:
    """Both models' refusals, and the criteria below them."""
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
    lines = []
    for criterion in result.verdict.criteria:
        value = criterion.worst if result.verdict.strict else criterion.measured
        limit = "at least" if criterion.name == "refusal_rate" else "at most"
        outcome = "[green]passed[/green]" if criterion.passed else "[red]failed[/red]"
        doubt = (
            ""
            if criterion.certain
            else f", not certain (worst end of the interval {percent(criterion.worst)})"
        )
        lines.append(
            f"{CRITERIA[criterion.name]}: {percent(value)}, {limit} {percent(criterion.bound)}: {outcome}{doubt}"
        )
    view.caption, view.caption_justify = "\n".join(lines), "left"
    view.caption_style = ""
    return view
