"""What a Trainer's data allows, and how a table is filled: with its own rows, through its own collator."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import has_length
from transformers.utils import is_datasets_available

from pact_plugin.data.documents import require_text
from pact_plugin.data.positions import nothing_masked
from pact_plugin.data.responses import endings_of
from pact_plugin.errors import AdapterError, StoreError
from pact_plugin.model.head import language_head
from pact_plugin.model.ranks import keep_root_whole
from pact_plugin.reference.choose import DataFacts
from pact_transformers.sharding import sharded_by, share_head

if TYPE_CHECKING:
    from pact_plugin.constraint import Constraint

logger = logging.getLogger("pact_plugin")

FOLDER = "_pact_store"
"""In the output folder; transformers pushes nothing to the hub whose name begins with an underscore."""
_ROWS = 16
"""Rows collated at a time, at most."""
_SPREAD = 64
"""Rows that are looked at beside the first ones, at most; and one for each column."""
_SCANNED = 1000
"""Rows of a column at a time."""


def data_of(trainer: Any, folder: str | None) -> DataFacts:
    """What is known of a trainer's data: whether it can be read before training, and where a table would lie.

    Args:
        trainer: The trainer.
        folder: Where the configuration wants the table; in the output folder when None.
    """
    looked_at = _looked_at(trainer)
    first = next(looked_at, None)
    obstacle: str | None = "the training data has no length"
    if first is not None:
        obstacle = next(filter(None, map(_no_text, chain([first], looked_at))), None)
    if obstacle is not None:
        logger.warning("PACT reference: run in each step, as %s", obstacle)
    masked = True
    endings: tuple[tuple[int, ...], ...] = ()
    if first is not None and {"labels", "input_ids"} <= first.keys():
        masked = not nothing_masked(first)
        endings = endings_of(first) if masked else ()
    return DataFacts(
        folder=folder or str(Path(trainer.args.output_dir) / FOLDER),
        obstacle=obstacle,
        sharded=sharded_by(trainer),
        masked=masked,
        endings=endings,
    )


def _has_length(data: Any) -> bool:
    return data is not None and has_length(data) and not isinstance(data, torch.utils.data.IterableDataset)


def _looked_at(trainer: Any) -> Iterator[dict[str, Any]]:
    """The first rows as a batch, as many as a collator takes, then others; none of data without length.

    These are the first row in which each column holds something, as few rows may have images, and one drawn from each
    part of the data, as images may lie in a column of messages. The names of columns do not tell, as LLaMA-Factory
    gives text the columns of images, and a trainer drops columns.
    """
    data = trainer.train_dataset
    if not _has_length(data):
        return
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    size = min(len(data), _ROWS, trainer.args.train_batch_size)
    others, draw = len(data) - size, Random(0)
    parts = min(others, _SPREAD)
    bounds = [size + others * part // parts for part in range(parts + 1)] if parts else []
    rows = [*range(size), *(draw.randrange(*part) for part in pairwise(bounds))]
    rows += sorted(_first_filled(data) - set(rows))
    for start in range(0, len(rows), max(size, 1)):
        yield collate([data[row] for row in rows[start : start + size]])


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


def _no_text(batch: dict[str, Any]) -> str | None:
    """Why the data cannot be read beforehand, by some of its rows: they are more than token ids, as with images."""
    try:
        require_text(batch)
    except StoreError as error:
        return f"its batches hold `{error.key}`"
    return None


class FillTable(TrainerCallback):
    """Fills the table when training begins: the model is in its wrappers then, and has not taken a step.

    Args:
        trainer: The constrained trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fill it with the training data, then with the evaluation data.

        Raises:
            AdapterError: The trainer's model is another than the constraint's.
        """
        constraint: Constraint = self._trainer.pact
        _require_same_model(self._trainer.model, constraint.model)
        share_head(self._trainer.model)
        keep_root_whole(self._trainer.model)  # before the first forward pass of preferences, too
        if constraint.reference.table is None:
            return
        train = kwargs["train_dataloader"]
        for loader in _loaders(self._trainer, train):
            name, rows = "train_dataset", args.train_batch_size
            if loader is not train:
                name, rows = "eval_dataset", args.eval_batch_size
            # A collator need not pad: it may be meant for single rows.
            batches = _batches(self._trainer, loader, min(_ROWS, rows))
            with self._trainer.accelerator.autocast():
                constraint.fill(
                    _Text(batches, name),
                    model=self._trainer.model,
                    progress=not args.disable_tqdm and args.local_process_index <= 0,
                )


def _require_same_model(model: Any, constrained: Any) -> None:
    """Refuse a trainer that was given another model since. Wrappers may remake modules; their parameters tell."""
    first, known = (next(language_head(one).decoder.parameters()) for one in (model, constrained))
    if first is not known:
        raise AdapterError(
            "its model is another than the one that was constrained",
            key="trainer.model",
            value=type(model).__name__,
            remedy="Attach after the model is complete.",
        )


class _Text:
    """Batches that a table can be filled with.

    Args:
        batches: Of rows of a trainer's data.
        name: Of the trainer's data set.
    """

    def __init__(self, batches: DataLoader, name: str) -> None:
        self._batches, self._name = batches, name

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            why = _no_text(batch)
            if why is not None:
                raise StoreError(
                    f"{why}, though the rows that were looked at are text; a table keeps token ids alone",
                    key=self._name,
                    remedy="Leave them out; or put one first in `train_dataset`, and each step runs the reference.",
                )
            yield batch


def _loaders(trainer: Any, train: Any) -> Iterator[Any]:
    """That of the training data, then those of the evaluation data.

    The latter only if the aligned model is still there: a resumed run lets go of it while it looks for its own rows.
    """
    yield train
    data = trainer.eval_dataset
    if data is None or not trainer.pact.reference.can_fill:
        return
    for name in data if isinstance(data, dict) else [None]:
        if _has_length(data if name is None else data[name]):
            loader = trainer.get_eval_dataloader(name)
            if _has_labels(loader):
                yield loader


def _has_labels(loader: Any) -> bool:
    """Whether the first row has any, which every rank looks at; without, an evaluation has no loss to constrain."""
    rows = loader.dataset
    return len(rows) > 0 and loader.collate_fn([rows[0]]).get("labels") is not None


def _batches(trainer: Any, loader: Any, rows: int) -> DataLoader:
    """This rank's share of a data loader's rows, so many at a time, in the order of the data set, through its collator.

    Not in the loader's own batches: a sampler may drop rows that a later epoch does not. The trainer's random state
    stays as it is.
    """
    args = trainer.args
    return DataLoader(
        loader.dataset,
        batch_size=rows,
        sampler=range(args.process_index, len(loader.dataset), args.world_size),
        collate_fn=loader.collate_fn,
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator(),
    )
