"""When a Trainer stores its reference, and how it fills the store: with its own rows, through its own collator."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from pact_plugin.config import PactConfig
from pact_plugin.data.documents import require_text
from pact_plugin.errors import AdapterError, StoreError
from pact_plugin.model.wrappers import peft_model

if TYPE_CHECKING:
    from pact_plugin.constraint import PactConstraint

logger = logging.getLogger("pact_plugin")

FOLDER = "_pact_store"
"""In the output folder; transformers pushes nothing to the hub whose name begins with an underscore."""
_ROWS = 16
"""Rows collated at a time, at most."""


def with_reference(trainer: Any, config: PactConfig, epochs: float | None = None) -> PactConfig:
    """The settings with a store in the output folder, where the reference is to be stored.

    `auto` stores it for full fine-tuning, where the alternative is a copy of the parameters, and for more than one
    epoch, where the alternative is a pass in each.

    Args:
        trainer: The trainer.
        config: Its settings.
        epochs: How often a row will be trained on, where the trainer's own arguments do not say it.

    Raises:
        AdapterError: The data cannot be stored, and the parameters are sharded, so that no copy of them can serve.
    """
    if config.reference not in ("auto", "stored"):
        return config
    full, sized = peft_model(trainer.model) is None, _has_length(trainer.train_dataset)
    epochs = (_epochs(trainer) if epochs is None else epochs) if sized else 0
    if config.reference == "auto" and config.store is None and not full and epochs <= 1:
        return config
    obstacle = _no_text(trainer) if sized else "the training data has no length"
    if obstacle is not None:
        if full and trainer.is_fsdp_enabled:
            raise AdapterError(
                f"{obstacle}, so its reference cannot be stored, and a copy of the parameters, which are sharded, "
                "cannot serve instead",
                key="fsdp",
                remedy="Use a data set with a length and token ids alone, or name the aligned model as `reference`.",
            )
        logger.warning(
            "PACT reference: not stored, as %s; %s",
            obstacle,
            "a copy of the parameters is run in each step" if full else "it is run in each step",
        )
        return config.model_copy(update={"reference": "auto", "store": None})
    store = config.store or str(Path(trainer.args.output_dir) / FOLDER)
    why = "full fine-tuning" if full else f"{epochs:.3g} epochs" if config.reference == "auto" else "as asked"
    logger.info("PACT reference: stored in %s before the first step (%s)", store, why)
    return config.model_copy(update={"reference": "stored", "store": store})


def _has_length(data: Any) -> bool:
    return data is not None and has_length(data) and not isinstance(data, torch.utils.data.IterableDataset)


def _epochs(trainer: Any) -> float:
    """How often each row will be trained on."""
    data, args = trainer.train_dataset, trainer.args
    if args.max_steps <= 0:
        return args.num_train_epochs
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * rows / max(len(data), 1)


def _no_text(trainer: Any) -> str | None:
    """Why the data cannot be stored, by its first row: it is more than token ids, as with images."""
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    try:
        require_text(collate([trainer.train_dataset[0]]))
    except StoreError as error:
        return f"its batches hold `{error.key}`"
    return None


class FillStore(TrainerCallback):
    """Fills the store when training begins: the model is in its wrappers then, and has not taken a step.

    Args:
        trainer: The constrained trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fill it with the training data, then with the evaluation data."""
        constraint: PactConstraint = self._trainer.pact
        if constraint.stored is None:
            return
        train = kwargs["train_dataloader"]
        for loader in _loaders(self._trainer, train, evaluation=constraint.can_fill):
            # A collator need not pad: it may be meant for single rows.
            rows = min(_ROWS, args.train_batch_size if loader is train else args.eval_batch_size)
            constraint.fill(
                _batches(self._trainer, loader, rows),
                model=self._trainer.model,
                progress=not args.disable_tqdm and args.local_process_index <= 0,
            )


def _loaders(trainer: Any, train: Any, *, evaluation: bool) -> Iterator[Any]:
    yield train
    data = trainer.eval_dataset
    if data is None or not evaluation:
        return
    for name in data if isinstance(data, dict) else [None]:
        if _has_length(data if name is None else data[name]):
            yield trainer.get_eval_dataloader(name)


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
