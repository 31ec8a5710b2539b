"""Texts that are not ours inside Markdown."""

from __future__ import annotations

from pathlib import Path


def cell(text: str) -> str:
    """Text inside a cell of a table, or between backticks."""
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")


def shown_name(model: str) -> str:
    """A model's name as others may see it: of a folder its name alone, as paths tell about the user."""
    return cell(Path(model).name if Path(model).is_absolute() else model)
