"""Progress bars with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bars:
    """A stack of progress bars, one per stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def add(self, description: str, total: int) -> Callable[[int], None]:
        """A new bar of ``total`` units; calling the result with a number advances it."""
        task = self._progress.add_task(description, total=total)

        def advance(units: int) -> None:
            self._progress.advance(task, units)

        return advance


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars that live as long as the context."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        yield Bars(progress)
