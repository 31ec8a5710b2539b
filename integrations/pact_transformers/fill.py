"""How a table is filled: with a Trainer's own rows, through its own collator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from pact_plugin.data.generation import random_state_kept
from pact_plugin.errors import AdapterError, StoreError
from pact_plugin.model.head import language_head
from pact_plugin.model.ranks import keep_root_whole
from pact_transformers.data_facts import ROWS, no_text, sized
from pact_transformers.sharding import share_head

if TYPE_CHECKING:
    from pact_plugin.constraint import Constraint


class FillTable(TrainerCallback):
    """Fills the table when training begins: the model is in its wrappers then, and has not taken a step.

    Args:
        trainer: The constrained trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @random_state_kept()
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
            batches = _batches(self._trainer, loader, min(ROWS, rows))
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
            why = no_text(batch)
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
        if sized(data if name is None else data[name]):
            loader = trainer.get_eval_dataloader(name)
            if _has_labels(loader):
                yield loader


def _has_labels(loader: Any) -> bool:
    """Whether the first row has any, which every rank looks at; without, an evaluation has no loss to constrain."""
    rows = loader.dataset
    return len(rows) > 0 and loader.collate_fn([rows[0]]).get("labels") is not None


def _batches(trainer: Any, loader: Any, rows: int) -> DataLoader:
    """This rank's share of a data loader's rows in batches, in the order of the data set, through its collator.

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
