"""Safety tokens for the eye: a table, and progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from pact_plugin.data.generation import Progress
    from pact_plugin.tokens.safety_tokens import SafetyTokens

_VISIBLE = str.maketrans(" Ġ▁\nĊ\tĉ", "␣␣␣⏎⏎⇥⇥")


def spelled(tokens: SafetyTokens, tokenizer: Any = None) -> list[str]:
    """Each token as text with visible white space; without its tokenizer, from the stored token string."""
    texts = list(tokens.tokens) if tokenizer is None else [tokenizer.decode([index]) for index in tokens.ids]
    return [text.translate(_VISIBLE) for text in texts]


def ranked(tokens: SafetyTokens) -> list[int]:
    """Positions of the tokens, the greatest weight first."""
    return sorted(range(len(tokens)), key=lambda k: (-tokens.weights[k], tokens.ids[k]))


def table(tokens: SafetyTokens, tokenizer: Any = None) -> Table:
    """The tokens by rank, with a bar for each weight."""
    texts = spelled(tokens, tokenizer)
    highest = max(max(tokens.weights), 0.0)
    lowest = min(min(tokens.weights), 0.0)
    view = Table(title="Safety tokens", title_justify="left", header_style="bold")
    for name in ("rank", "id"):
        view.add_column(name, justify="right", style="dim")
    view.add_column("token")
    view.add_column("weight", justify="right")
    view.add_column("", min_width=16, max_width=40)
    for rank, k in enumerate(ranked(tokens), 1):
        weight = tokens.weights[k]
        ends = sorted((-lowest, weight - lowest))
        bar = Bar(highest - lowest, *ends, color="green" if weight > 0 else "red")
        view.add_row(str(rank), str(tokens.ids[k]), Text(texts[k]), f"{weight:+.4f}", bar)
    return view


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """A callback (done, total, description) that draws one bar, with the time left, for each description."""
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
    )
    tasks: dict[str, TaskID] = {}
    with ProgressBars(*columns, console=console) as bars:

        def report(done: int, total: int, description: str) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done)

        yield report
