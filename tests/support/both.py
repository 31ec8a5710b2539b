"""Either trainer on the same rows, full or with LoRA: `transformers.Trainer` and TRL's `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hf import adapted, hf_trainer, tokenized
from loop import FEW_ANCHORS
from sft import TOKENIZER, TOKENS, completions, lora, sft_trainer, weights
from tiny import tiny_model
from transformers import TrainerCallback

import pact_plugin as pact
from pact_plugin.hooks.manager import find_adapter
from pact_plugin.run.receipt import Receipt

CONFIG = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, hold_data=True, anchors=FEW_ANCHORS)
"""Every term: easing, anchors and the data."""
HELD = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, hold_data=True, anchors=False)
SAVING = {"save_strategy": "steps", "save_steps": 2}


def of_transformers(
    output: Any,
    *,
    with_lora: bool = False,
    dropout: float = 0.0,
    model: Any = None,
    data: Dataset | None = None,
    streaming: bool = False,
    **settings: Any,
) -> Any:
    """A `transformers.Trainer`; see `of_trl`."""
    model = tiny_model() if model is None else model
    rows = tokenized() if data is None else tokenized(data)
    return hf_trainer(
        output,
        model=adapted(model, lora_dropout=dropout) if with_lora else model,
        data=rows.to_iterable_dataset() if streaming else rows,
        **settings,
    )


def of_trl(
    output: Any,
    *,
    with_lora: bool = False,
    dropout: float = 0.0,
    data: Dataset | None = None,
    streaming: bool = False,
    **settings: Any,
) -> Any:
    """An SFTTrainer.

    Args:
        output: Its output folder.
        with_lora: Whether the model gets a new adapter.
        dropout: Of that adapter.
        data: Rows as of `completions`.
        streaming: Whether the data has no length.
        **settings: As for `sft_trainer`, such as `model`, `trainer_class` or `max_steps`.
    """
    rows = completions() if data is None else data
    return sft_trainer(
        output,
        peft=lora(lora_dropout=dropout) if with_lora else None,
        data=rows.to_iterable_dataset() if streaming else rows,
        **settings,
    )


each_trainer = pytest.mark.parametrize("build", [of_transformers, of_trl], ids=["transformers", "trl"])
each_kind = pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])


def changed(config: pact.PactConfig, **changes: Any) -> pact.PactConfig:
    """The same settings but for some."""
    given = {
        name: False if (value := getattr(config, name)) is None else value for name in config.model_fields_set
    }
    return pact.PactConfig(**(given | changes))


def with_reference_in_steps(trainer: Any, config: pact.PactConfig) -> Any:
    """Constrain a trainer without a table, so that each step runs the reference."""
    return find_adapter(trainer).attach(trainer, pact.PactConstraint(trainer.model, TOKENIZER, config))


def probe_of(trainer: Any) -> Any:
    """By which the trainer's constraint eases; None where it does not."""
    found = [term.columns[0].linear for term in trainer.pact.terms if term.name == "easing"]
    return found[0] if found else None


class Recording(TrainerCallback):
    """The batches that a trainer's steps are given. To be built once the constraint is attached.

    The collator also makes those from which the table is filled, before this callback hears that training begins.
    """

    def __init__(self, trainer: Any) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        self._collate = trainer.data_collator
        trainer.data_collator = self
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.clear()

    def __call__(self, rows: Any) -> Any:
        batch = self._collate(rows)
        self.batches.append({key: value.clone() for key, value in batch.items() if torch.is_tensor(value)})
        return batch


def resumes_as_one(folder: Path, trainer: Callable[[Path, int], Any]) -> Any:
    """A run of four steps that was interrupted after two ends as one that was not; the resumed trainer.

    Args:
        folder: For the outputs, `whole` and `cut`.
        trainer: Builds one for an output folder and a number of steps, eased and held at the data.
    """
    whole = trainer(folder / "whole", 4)
    whole.train()
    trainer(folder / "cut", 2).train()
    resumed = trainer(folder / "cut", 4)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, atol=1e-6, rtol=1e-5)
    ours, theirs = (Receipt.read(folder / name) for name in ("cut", "whole"))
    assert ours.steps == [[1, 4]]
    assert (ours.trained_tokens, ours.positions) == (theirs.trained_tokens, theirs.positions)
    assert ours.positions > 0
    assert {"loss", "eased", "divergence"} <= theirs.sums.keys()
    for name in theirs.sums:
        assert ours.mean(name) == pytest.approx(theirs.mean(name), rel=1e-4), name
    return resumed
