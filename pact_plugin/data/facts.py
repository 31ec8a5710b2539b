"""What is known of the data before training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFacts:
    """What some rows of the data say.

    Args:
        labels: Whether batches have next-token labels. Preference data has none; only anchors are held there.
        masked: Whether any token of some rows is masked, so that it can be told where answers begin; None where no row
            was looked at.
        endings: The last tokens before the answers of these rows (see `endings_of`).
    """

    labels: bool = True
    masked: bool | None = None
    endings: tuple[tuple[int, ...], ...] = ()
