"""Runs on several ranks of which the first alone saves the model, in a callback: lone_save.py FOLDER.

For test_trl.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from both import HELD
from leaving import leave
from sft import completions, sft_trainer
from torch import distributed
from transformers import TrainerCallback

import pact_plugin as pact
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run


class SaveAlone(TrainerCallback):
    """Saves after every step, on the first rank."""

    def __init__(self, trainer: Any, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._trainer.save_model(str(self._folder / f"step-{state.global_step}"))


def run(folder: Path, *, alone: bool) -> None:
    trainer = sft_trainer(
        folder,
        data=completions(24),
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=2,
        save_strategy="steps",
        save_steps=3,
    )
    pact.attach(trainer, HELD)
    if alone:
        trainer.add_callback(SaveAlone(trainer, folder))
    trainer.train()
    trainer.accelerator.wait_for_everyone()


def main(folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    run(folder / "alone", alone=True)
    run(folder / "plain", alone=False)
    for name in (".", "checkpoint-3"):
        ours, theirs = (Receipt.read(folder / which / name) for which in ("alone", "plain"))
        assert ours == replace(theirs, trained_until=ours.trained_until), name
    counted = []
    for step in range(1, 5):
        saved = folder / "alone" / f"step-{step}"
        assert f"{step} steps" in verify_run(saved)
        assert (saved / "model.safetensors").is_file()
        counted.append(Receipt.read(saved).trained_tokens)
    whole = Receipt.read(folder / "alone").trained_tokens
    assert 0 < counted[0] < counted[1] < counted[2] < counted[3] < whole
    print("saved alone", flush=True)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
