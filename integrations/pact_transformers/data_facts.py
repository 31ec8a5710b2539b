"""What a Trainer's data allows, by some of its rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers.trainer_utils import has_length
from transformers.utils import is_datasets_available

from pact_plugin.data.documents import require_text
from pact_plugin.data.facts import DataFacts
from pact_plugin.data.generation import random_state_kept
from pact_plugin.data.positions import nothing_masked
from pact_plugin.data.responses import endings_of
from pact_plugin.errors import StoreError
from pact_plugin.model.ranks import all_gather_object
from pact_plugin.reference.choose import STORE, RunFacts
from pact_transformers.sharding import sharded_by

logger = logging.getLogger("pact_plugin")

ROWS = 16
"""Rows that are looked at first, and rows collated at a time, at most."""
_SPREAD = 64
"""Rows that are looked at beside the first ones, at most; and one for each column."""
_SCANNED = 1000
"""Rows of a column at a time."""


def facts_of(trainer: Any, folder: str | None) -> tuple[RunFacts, DataFacts]:
    """What is known of a trainer's run, and of its data by some rows; every rank calls it.

    Args:
        trainer: The trainer.
        folder: Where the configuration wants the table; in the output folder when None.
    """
    obstacle = None if sized(trainer.train_dataset) else "the training data has no length"
    masked: list[bool] = []
    endings: dict[tuple[int, ...], None] = {}
    with random_state_kept():
        for batch in _looked_at(trainer):
            obstacle = obstacle or no_text(batch)
            if {"labels", "input_ids"} <= batch.keys():
                masked.append(not nothing_masked(batch))
                endings |= dict.fromkeys(endings_of(batch))
    # Ranks may hold different parts of a stream, and shall decide alike.
    parts = all_gather_object((obstacle, masked, list(endings)))
    obstacle = next((why for why, _, _ in parts if why is not None), None)
    masked = [one for _, some, _ in parts for one in some]
    if obstacle is not None:
        logger.warning("PACT reference: run in each step, as %s", obstacle)
    run = RunFacts(folder_of(trainer, folder), obstacle, sharded_by(trainer))
    found = dict.fromkeys(one for _, _, some in parts for one in some)
    return run, DataFacts(masked=any(masked) if masked else None, endings=tuple(found))


def folder_of(trainer: Any, folder: str | None) -> str:
    """Where a trainer's table and answers lie: where the configuration says, or in its output folder."""
    return folder or str(Path(trainer.args.output_dir) / STORE)


def sized(data: Any) -> bool:
    """Whether data has a length, so that its rows can be read by number."""
    return data is not None and has_length(data) and not isinstance(data, torch.utils.data.IterableDataset)


def no_text(batch: dict[str, Any]) -> str | None:
    """Why the data cannot be read beforehand, by some of its rows: they are more than token ids, as with images."""
    try:
        require_text(batch)
    except StoreError as error:
        return f"its batches hold `{error.key}`"
    return None


def _looked_at(trainer: Any) -> Iterator[dict[str, Any]]:
    """The first rows, then others, in batches as large as the trainer's; the rows are the same whatever that size.

    These are the first row in which each column holds something, as few rows may have images, and one drawn from each
    part of the data, as images may lie in a column of messages. The names of columns do not tell, as LLaMA-Factory
    gives text the columns of images, and a trainer drops columns. Of a stream of `datasets`, which can be read again
    from its beginning, only the first rows are looked at, and of other streams none.
    """
    data = trainer.train_dataset
    # Axolotl's trainer takes a column off the signature, and fails where it is not there any more.
    signature = trainer._signature_columns
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    trainer._signature_columns = signature
    if not sized(data):
        for row in data.take(ROWS) if _starts_again(data) else ():
            yield collate([row])
        return
    first, size = min(len(data), ROWS), min(ROWS, trainer.args.train_batch_size)
    others, draw = len(data) - first, Random(0)
    parts = min(others, _SPREAD)
    bounds = [first + others * part // parts for part in range(parts + 1)] if parts else []
    rows = [*range(first), *(draw.randrange(*part) for part in pairwise(bounds))]
    rows += sorted(_first_filled(data) - set(rows))
    for start in range(0, len(rows), max(size, 1)):
        yield collate([data[row] for row in rows[start : start + size]])


def _starts_again(data: Any) -> bool:
    if not is_datasets_available():
        return False
    import datasets

    return isinstance(data, datasets.IterableDataset)


def _first_filled(data: Any) -> set[int]:
    """The first row in which each column of a `datasets.Dataset` is neither null nor an empty list; none of others."""
    if not is_datasets_available():
        return set()
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    found = set()
    for name in data.column_names if isinstance(data, datasets.Dataset) else ():
        # Parts in Arrow's own form: nothing is decoded, and a column that is filled at once is not read on.
        parts = data.select_columns(name).with_format("arrow").iter(_SCANNED)
        for number, part in enumerate(parts):
            values = part.column(0)
            lists = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
            filled = pc.greater(pc.list_value_length(values), 0) if lists else pc.is_valid(values)
            place = pc.index(filled, True).as_py()
            if place >= 0:
                found.add(number * _SCANNED + place)
                break
    return found
