"""A real trainer whose constraint can be switched from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pact_transformers.fill import FillTable
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.settings import PLAIN, Mode, Settings
from benchmarks.shapes import build_model, build_tokenizer, lora, random_rows, safety_tokens
from pact_plugin import PactConfig, PactConstraint
from pact_plugin.hooks.manager import find_adapter
from pact_plugin.reference.choose import RunFacts


class _OneBatch:
    """Trains on the data set's first batch again and again; the others are there for tables to be filled with."""

    args: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.args.train_batch_size * self.args.world_size
        return list(range(rows)) * self.args.max_steps


class OneBatchSFTTrainer(_OneBatch, SFTTrainer):
    """TRL's; its loss never builds the logits of a whole batch."""


class OneBatchTrainer(_OneBatch, Trainer):
    """Transformers'; its loss is the model's own, on full logits."""


def build_trainer(settings: Settings, steps: int, folder: Path) -> Any:
    """A trainer that will take `steps` steps.

    Args:
        settings: What is measured.
        steps: Optimiser steps.
        folder: For its output.
    """
    shape, on_cpu = settings.sizes, settings.device == "cpu"
    dtype = getattr(torch, settings.dtype)
    tokenizer = build_tokenizer(shape.vocab_size)
    model = build_model(shape, dtype=dtype, device=settings.device, seed=settings.seed)
    torch.manual_seed(settings.seed)
    if settings.train == "lora":
        model = lora(model, settings.rank)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": shape.batch,
        "learning_rate": 1e-5,
        "optim": "adamw_torch",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": on_cpu,
        "bf16": dtype == torch.bfloat16 and not on_cpu,
        "disable_tqdm": True,
        "gradient_checkpointing": False,  # SFTTrainer's default is True
        "seed": settings.seed,
    }
    if settings.gradient_checkpointing:
        arguments |= {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    rows = shape.batch * settings.ranks * settings.fill_batches
    data = random_rows(rows, shape.length, settings.response_share, shape.vocab_size, settings.seed)
    shared = {"model": model, "train_dataset": data, "processing_class": tokenizer}
    if settings.loss == "chunked":
        return OneBatchSFTTrainer(args=SFTConfig(**arguments, max_length=None), **shared)
    collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
    return OneBatchTrainer(args=TrainingArguments(**arguments), data_collator=collator, **shared)


class Switch:
    """A trainer with several constraints, of which one or none is on.

    They are all built while the model still is the aligned one. The steps of all kinds then share one model, one
    optimiser and one place in memory, so nothing but the constraint tells them apart, and a large model is there once.

    Args:
        trainer: A plain trainer.
        settings: The ways to constrain it.
        folder: For tables.
    """

    def __init__(self, trainer: Any, settings: Settings, folder: Path) -> None:
        self.trainer, self._plain, self._settings = trainer, type(trainer), settings
        self._kinds: dict[str, tuple[type, PactConstraint, FillTable]] = {}
        tokens = safety_tokens(trainer.processing_class, settings.tokens)
        for name in settings.modes:
            mode = Mode.parse(name)
            self._attach(mode, mode.config(tokens, folder, settings.prompts))
            (filler,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, FillTable)]
            trainer.remove_callback(filler)
            self._kinds[name] = (type(trainer), trainer.pact, filler)
            self.to(PLAIN)

    def _attach(self, mode: Mode, config: PactConfig) -> None:
        adapter = find_adapter(self.trainer)
        parts = adapter.parts(self.trainer, config.advanced.store)
        other = None
        if mode.where == "model":
            dtype = getattr(torch, self._settings.dtype)
            other = build_model(  # the same weights, and no adapter
                self._settings.sizes, dtype=dtype, device=self._settings.device, seed=self._settings.seed
            )
        run = parts.run if mode.where == "table" else RunFacts(obstacle="each step is to run the reference")
        constraint = PactConstraint(
            parts.model, parts.tokenizer, config, reference_model=other, run=run, data=parts.data
        )
        adapter.attach(self.trainer, constraint)

    def to(self, name: str) -> None:
        """Switch to a way to constrain, or to `plain`."""
        vars(self.trainer).pop("pact", None)
        self.trainer.__class__ = self._plain
        if name != PLAIN:
            self.trainer.__class__, self.trainer.pact = self._kinds[name][:2]

    def constraint(self, name: str) -> PactConstraint:
        """One of the constraints."""
        return self._kinds[name][1]

    def fill(self, name: str, **event: Any) -> bool:
        """Fill the table of one, as the trainer does when training begins. False: it has none."""
        if self.constraint(name).reference.table is None:
            return False
        with self._on(name):
            self._kinds[name][2].on_train_begin(**event)
        return True

    @contextmanager
    def _on(self, name: str) -> Iterator[None]:
        self.to(name)
        try:
            yield
        finally:
            self.to(PLAIN)


class StepCallback(TrainerCallback):
    """Switches the constraint before each step, and waits for the device on both sides of it.

    Args:
        switch: The trainer's constraints.
        plan: What to switch to, step by step.
    """

    def __init__(self, switch: Switch, plan: list[str]) -> None:
        self.switch, self.plan = switch, plan

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the forward pass."""
        self.switch.to(self.plan[state.global_step])
        synchronize(args.device)
        self.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimiser."""
        synchronize(args.device)
        self.end(self.plan[state.global_step - 1])
        self.switch.to(PLAIN)

    def begin(self) -> None:
        """A step begins."""

    def end(self, name: str) -> None:
        """A step of this kind has ended."""


def synchronize(device: torch.device) -> None:
    """Wait for the device, and for the other ranks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
