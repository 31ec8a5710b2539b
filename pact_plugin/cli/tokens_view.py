"""Safety tokens as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
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
