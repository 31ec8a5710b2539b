"""A file for `--external_plugins`, for the tests: its callback writes what each micro-batch begins with.

Into DUMP_BATCHES/<number>.pt go the rows as the data loader gives them, and the trained weights at that moment; those
of several ranks in turn.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback


class DumpCallback(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(os.environ["DUMP_BATCHES"])
        folder.mkdir(parents=True, exist_ok=True)
        trainer, step = self.trainer, self.trainer.training_step
        numbers = itertools.count(args.process_index, args.world_size)

        def training_step(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            tensors = {key: value.clone() for key, value in inputs.items() if torch.is_tensor(value)}
            weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
            torch.save({"inputs": tensors, "weights": weights}, folder / f"{next(numbers):03d}.pt")
            return step(model, inputs, *rest, **named)

        trainer.training_step = training_step


callbacks_map["dump"] = DumpCallback
