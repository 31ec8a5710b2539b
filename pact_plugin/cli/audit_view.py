"""An audit for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pact_plugin.audit.report import decided, p_value, percent, points
from pact_plugin.audit.result import AuditResult
from pact_plugin.cli.flags import AUDIT, in_flags


def show(console: Console, result: AuditResult) -> None:
    """Notes, refusals, what else was measured, and the verdict."""
    for note in result.notes:
        console.print(in_flags(note, AUDIT), style="yellow", markup=False)
    console.print(table(result))
    for line in (*beside(result), *criteria(result)):
        console.print(line, soft_wrap=True)
    passed = result.verdict.passed
    console.print("passed" if passed else "failed", style="bold green" if passed else "bold red")


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
                f"{rate.refused}  {percent(rate.rate)}\n[dim]{percent(rate.low)} to {percent(rate.high)}[/dim]\n"
                f"[dim]{rate.partial} in part, {rate.neither} neither[/dim]"
                for rate in (one.reference, one.candidate)
            ),
            f"{points(one.change.difference)}\n[dim]{points(one.change.low)} to {points(one.change.high)}[/dim]",
            f"p {p_value(one.change.p_value)}",
        )
    return view


def criteria(result: AuditResult) -> Iterator[Text]:
    """A line for each threshold."""
    for one in result.verdict.criteria:
        measured, outcome, doubt = decided(one, strict=result.verdict.strict)
        yield Text.assemble(f"{measured}: ", (outcome, "green" if one.passed else "red"), doubt)


def beside(result: AuditResult) -> Iterator[Text]:
    """A line for each thing that was measured beside refusals."""
    for kind, one in result.comparisons().items():
        asked = "" if one.change.requests is None else f" of {one.change.requests} requests"
        yield Text(
            f"{one.reference.n} {kind} prompts{asked} tell a change of {100 * one.change.resolvable:.1f} points or "
            "more from none (95%), if as many as here change the other way"
        )
        if one.noise is not None:
            yield Text(
                f"Noise floor, {kind}: at most {one.noise.maximum} of {one.reference.n} verdicts flip by themselves "
                f"({one.noise.mean:.1f} on average, {len(one.noise.flips)} rounds)"
            )
        if one.coherence is not None:
            yield Text(
                f"Coherence, {kind}: {one.coherence.candidate:.2f} nats per token under the reference "
                f"({one.coherence.low:.2f} to {one.coherence.high:.2f}; its own answers {one.coherence.reference:.2f})"
            )
    if (task := result.task) is not None:
        yield Text(
            f"Held-out task: {task.candidate:.3f} nats per token, {task.difference:+.3f} from the reference "
            f"({task.low:+.3f} to {task.high:+.3f}; {task.items} items)"
        )
    if (everyday := result.everyday) is not None:
        yield Text(
            f"Everyday questions: KL {everyday.kl:.4f} nats per token from the reference "
            f"({everyday.low:.4f} to {everyday.high:.4f}; {everyday.questions} questions)"
        )
    if (both := result.agreement) is not None:
        kappa = "not defined" if both.kappa is None else f"{both.kappa:.2f}"
        yield Text(
            f"Judges {result.settings.judges[0]} and {both.second}: Cohen's kappa {kappa}, "
            f"{both.differ} of {both.compared} answers differ"
        )
