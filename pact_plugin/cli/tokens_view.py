"""Safety tokens for the eye: a table, a bar chart, and progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table
from rich.text import Text

from pact_plugin.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from rich.console import Console

    from pact_plugin.data.generation import Progress
    from pact_plugin.tokens.safety_tokens import SafetyTokens

_POSITIVE, _OTHER = "#2a7f62", "#b5483a"  # weights in the chart
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


def chart(tokens: SafetyTokens, path: Path, tokenizer: Any = None) -> None:
    """Write a horizontal bar chart of the weights.

    Raises:
        ConfigError: The file's suffix is not an image format.
        PluginError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PluginError("a bar chart needs matplotlib", remedy="pip install 'pact-plugin[cli]'") from error
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(tokens)), dpi=150, layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        remedy = f"End it in one of .{', .'.join(sorted(formats))}."
        raise ConfigError("not an image format", key="--plot", value=str(path), remedy=remedy)
    order = ranked(tokens)
    texts = spelled(tokens, tokenizer)
    weights = [tokens.weights[k] for k in order]
    axes = figure.subplots()
    bars = axes.barh(
        range(len(order)), weights, color=[_POSITIVE if w > 0 else _OTHER for w in weights], height=0.72
    )
    axes.bar_label(bars, [f"{weight:.3f}" for weight in weights], padding=4, fontsize=8, color="#444444")
    axes.set_yticks(
        range(len(order)), labels=[texts[k] for k in order], fontfamily="monospace", parse_math=False
    )
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.5 / max(len(order), 1))
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("weight in the safety direction (unit norm)")
    model = tokens.provenance.get("model", "")
    axes.set_title(
        f"Safety tokens of {Path(model).name}" if model else "Safety tokens", loc="left", fontweight="bold"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


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
