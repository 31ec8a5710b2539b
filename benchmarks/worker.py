"""One process that measures, so that each starts from the same memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from benchmarks.memory import Peak
from benchmarks.settings import CLOCKS, PLAIN, Settings
from benchmarks.trainers import StepCallback, Switch, build_trainer


class _Timer(StepCallback):
    def __init__(self, switch: Switch, plan: list[str], clock: str) -> None:
        super().__init__(switch, plan)
        self._clock = CLOCKS[clock]
        self.seconds: dict[str, list[float]] = {name: [] for name in plan}
        self.fill: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fill the tables, the model being in its wrappers and still the aligned one."""
        event = kwargs | {"args": args, "state": state, "control": control}
        for name in self.seconds:
            if name == PLAIN:
                continue
            began = self._clock()
            if self.switch.fill(name, **event):
                self.fill[name] = self._clock() - began

    def begin(self) -> None:
        """A step begins."""
        self._began = self._clock()

    def end(self, name: str) -> None:
        """A step of this kind has ended."""
        self.seconds[name].append(self._clock() - self._began)


class _Gauge(StepCallback):
    def __init__(self, switch: Switch, plan: list[str], peak: Peak) -> None:
        super().__init__(switch, plan)
        self._peak, self.step = peak, 0
        self.fill: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fill the table, and read its peak apart."""
        self._peak.reset()
        event = kwargs | {"args": args, "state": state, "control": control}
        if self.plan[0] != PLAIN and self.switch.fill(self.plan[0], **event):
            self.fill = self._peak.bytes()
        self._peak.reset()

    def end(self, name: str) -> None:
        """A step has ended."""
        self.step = self._peak.bytes()


def plan_of(kinds: list[str], cycles: int) -> list[str]:
    """Every kind once in each cycle, each cycle beginning with the next one, so that none always follows the same."""
    turned = [kinds[i % len(kinds) :] + kinds[: i % len(kinds)] for i in range(cycles)]
    return [name for cycle in turned for name in cycle]


def time_steps(settings: Settings, folder: Path) -> dict[str, Any]:
    """Seconds of each measured step by kind, of filling each table, and the tables' sizes."""
    plan = plan_of([PLAIN, *settings.modes], settings.warmup + settings.cycles)
    trainer = build_trainer(settings, len(plan), folder)
    switch = Switch(trainer, settings, folder / "tables")
    timer = _Timer(switch, plan, settings.clock)
    trainer.add_callback(timer)
    trainer.train()
    tables = {name: switch.constraint(name).reference.table for name in settings.modes}
    return {
        "seconds": {name: steps[settings.warmup :] for name, steps in timer.seconds.items()},
        "fill_seconds": timer.fill,
        "table_bytes": {name: table.bytes for name, table in tables.items() if table is not None},
    }


def peak_bytes(settings: Settings, name: str, folder: Path) -> dict[str, Any]:
    """Peak of steps of one kind alone, model, gradients and optimiser included, and that of filling its table."""
    peak = Peak(settings.device)
    plan = [name] * 2  # the optimiser has its state from the second step on
    trainer = build_trainer(settings, len(plan), folder)
    switch = Switch(trainer, settings, folder / "tables")
    gauge = _Gauge(switch, plan, peak)
    trainer.add_callback(gauge)
    trainer.train()
    return {"step": gauge.step, "fill": gauge.fill}


def main() -> None:
    """`time|memory SETTINGS KIND FOLDER RESULT`; the first rank writes the result."""
    what, text, name, folder, result = sys.argv[1:]
    settings = Settings.from_json(text)
    torch.set_num_threads(settings.threads)
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    found: dict[str, Any]
    try:
        timed = what == "time"
        found = time_steps(settings, Path(folder)) if timed else peak_bytes(settings, name, Path(folder))
    except torch.cuda.OutOfMemoryError as error:
        found = {"out_of_memory": str(error).splitlines()[0]}
    if int(os.environ.get("RANK", "0")) == 0:
        Path(result).write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
