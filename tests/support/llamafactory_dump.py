"""Training by a configuration, which also writes what each micro-batch begins with, for the tests.

Into DUMP_BATCHES/<number>.pt go the rows as the trainer is given them, and the trained weights at that moment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from pact_llamafactory.launch import run

FOLDER = Path(os.environ["DUMP_BATCHES"])
step = CustomSeq2SeqTrainer.training_step


def training_step(trainer: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
    FOLDER.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.clone() for key, value in inputs.items() if torch.is_tensor(value)}
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    torch.save({"inputs": tensors, "weights": weights}, FOLDER / f"{len(list(FOLDER.iterdir())):03d}.pt")
    return step(trainer, model, inputs, *rest, **named)


CustomSeq2SeqTrainer.training_step = training_step
sys.exit(run(Path(sys.argv[1]), None, []))
