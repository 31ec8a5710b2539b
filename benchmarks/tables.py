"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1) -> str:
    """A table whose first `text` columns hold text, and the others numbers, which are aligned on the right."""
    aligned = ["---"] * text + ["---:"] * (len(headings) - text)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (headings, aligned, *rows))
