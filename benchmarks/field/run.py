"""Run what is missing: train, merge, ask; each cell becomes a file of its own."""

from __future__ import annotations

import copy
import gc
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM

from benchmarks import machine
from benchmarks.field import data as field_data
from benchmarks.field import origin
from benchmarks.field.data import Data
from benchmarks.field.kept import VERSION, claimed, locked, read, read_cell, write_whole
from benchmarks.field.measure import Questions, measure
from benchmarks.field.methods import Method, method_of
from benchmarks.field.methods.pact import resolved
from benchmarks.field.pool import pool_prompts
from benchmarks.field.settings import ALIGNED, Cell, Sizes, Split
from benchmarks.field.start import Start
from benchmarks.field.training import fine_tune
from pact_plugin.errors import ConfigError

Say = Callable[[str], None]
"""Called with a line of progress."""


@dataclass(frozen=True)
class Bench:
    """What runs are made with.

    Attributes:
        start: The aligned model.
        data: The files.
        split: The half that is asked.
        others: Methods beside those of the package, by name.
        say: Where progress goes.
    """

    start: Start
    data: Data
    split: Split
    others: Mapping[str, Method]
    say: Say

    def path(self, cell: Cell) -> Path:
        """Of the file of a cell."""
        return cell_path(self.start.folder, cell, self.split)


def cell_path(folder: Path, cell: Cell, split: Split) -> Path:
    """Of the file of a cell, on one half of what is asked."""
    return folder / "cells" / f"{cell.name}-{split}.json"


def run(bench: Bench, cells: Sequence[Cell]) -> list[Cell]:
    """Run the cells that are not there, and the aligned model of each task.

    Several processes may share a folder: a cell that another one runs is left to it.

    Returns:
        The cells that other processes run.

    Raises:
        ConfigError: The folder holds runs of other sizes or data, or of another method of the same name.
    """
    commit()  # of the code that runs, whatever becomes of the checkout meanwhile
    aligned = [Cell(task) for task in dict.fromkeys(cell.task for cell in cells)]
    check(bench, [*aligned, *cells])
    left = []
    for number, cell in enumerate([*aligned, *cells], 1):
        path = bench.path(cell)
        with claimed(bench.start.folder, path.stem) as ours:
            if path.is_file():
                continue
            if not ours:
                left.append(cell)
                continue
            bench.say(f"{number} of {len(aligned) + len(cells)}: {cell.name}, {bench.split}")
            write_whole(path, _made(bench, cell))
        gc.collect()
    return left


def check(bench: Bench, cells: Sequence[Cell]) -> None:
    """Refuse a folder of other runs. See `run`."""
    for path in sorted((bench.start.folder / "cells").glob("*.json")):
        if Sizes(**read_cell(path)["origin"]["sizes"]) != bench.start.sizes:
            raise _other(bench, path, ["sizes"])
    for cell in cells:
        own, adapter_of = trained_on(bench, cell), _with_adapter(bench, cell)
        _require(bench, bench.path(cell), own | origin.asked(questions(bench, cell)))
        if adapter_of is not None:
            _require(
                bench,
                adapter_folder(bench.start.folder, adapter_of) / "training.json",
                trained_on(bench, adapter_of),
            )
        if bench.path(cell).is_file() and own["config"] is not None:
            _notice(bench, bench.path(cell), read(bench.path(cell)), own["config"])


def _require(bench: Bench, path: Path, wanted: origin.Origin) -> None:
    """Refuse a file of a run that was made of other things."""
    if path.is_file() and (others := origin.differing(read(path)["origin"], wanted)):
        raise _other(bench, path, others)


def _other(bench: Bench, path: Path, what: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{path.relative_to(bench.start.folder)} there is of a run of other {' and '.join(what)}",
        key="output",
        value=str(bench.start.folder),
        remedy="Give another --output" + (", or another --name." if "config" in what else "."),
    )


def trained_on(bench: Bench, cell: Cell) -> origin.Origin:
    """See `origin.trained_on`."""
    method = None if cell.method == ALIGNED else method_of(cell.method, bench.others)
    return origin.trained_on(bench.start, bench.data, cell, method)


def _notice(bench: Bench, path: Path, content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Say so where a run that is there was made with the defaults of another version of pact-plugin."""
    then, now = content["training"]["config"], resolved(config, bench.start.sizes.per_step)
    if {key: value for key, value in then.items() if key in now} != now:
        bench.say(
            f"{path.name} is kept, of commit {content['commit']}: pact-plugin's defaults were others there"
        )


def _made(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The content of a cell's file."""
    start, model = bench.start, bench.start.model
    noted: dict[str, Any] = {}
    if (trained := _with_adapter(bench, cell)) is not None:
        noted = adapter(bench, trained)
        model = merged(
            start, adapter_folder(start.folder, trained), cell.strength if trained != cell else None
        )
    begun, wanted = time.perf_counter(), questions(bench, cell)
    found = measure(model, start, wanted)
    return {
        "format": "pact-field",
        "version": VERSION,
        "cell": asdict(cell),
        "split": bench.split,
        "origin": trained_on(bench, cell) | origin.asked(wanted),
        "training": noted,
        "asking_seconds": round(time.perf_counter() - begun, 1),
        "commit": commit(),
        "machine": machine.describe(torch.get_num_threads(), str(start.model.device)),
        **found,
    }


def _with_adapter(bench: Bench, cell: Cell) -> Cell | None:
    """The run whose adapter is asked: the cell itself, or plain where that is scaled; None for the model before."""
    if cell.method == ALIGNED:
        return None
    scaled = method_of(cell.method, bench.others).scales_adapter
    return replace(cell, method="plain", strength=None) if scaled else cell


def adapter_folder(folder: Path, cell: Cell) -> Path:
    """Where what a run has trained is kept, for the other half of what is asked and for methods that change it."""
    return folder / "adapters" / cell.name


def adapter(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Train a run if that was not done, and return what was noted of that."""
    folder = adapter_folder(bench.start.folder, cell)
    notes: Path = folder / "training.json"
    with locked(bench.start.folder, f"adapter-{cell.name}"):
        if not notes.is_file():
            items = field_data.training_items(bench.data, cell, bench.start.sizes)
            method = method_of(cell.method, bench.others)
            noted = fine_tune(bench.start, cell, method, items, folder, _every_tenth(bench.say))
            noted |= {"commit": commit(), "load_average": machine.os.getloadavg()[0]}
            write_whole(notes, noted | {"origin": trained_on(bench, cell)})
        found: dict[str, Any] = read(notes)
    return found


def merged(start: Start, folder: Path, scale: float | None = None) -> Any:
    """The aligned model with what was trained: an adapter, or the difference of every weight, perhaps scaled."""
    factor = 1.0 if scale is None else scale
    model = copy.deepcopy(start.model)
    if start.sizes.train == "lora":
        model = PeftModel.from_pretrained(model, str(folder))
        with rescale_adapter_scale(model, factor):
            return model.merge_and_unload().eval()
    tuned = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for own, new in zip(model.parameters(), tuned.parameters(), strict=True):
            own.copy_(own.float().lerp(new, factor))
    return model


def questions(bench: Bench, cell: Cell) -> Questions:
    """What a model is asked after a run."""
    sizes = bench.start.sizes
    held_out = field_data.task_items(bench.data, cell.task, sizes.held_out)[1]
    problems = field_data.problems(bench.data, sizes.exact) if cell.task == "gsm8k" else []
    return Questions(field_data.asked(bench.data, bench.split, sizes.ask, pool_prompts()), held_out, problems)


@cache
def commit() -> str:
    """The version of the repository when this was first asked, with a + if files had changed since.

    Empty where there is no git.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _every_tenth(say: Say) -> Callable[[int, int], None]:
    return lambda done, steps: say(f"  step {done} of {steps}") if done % 10 == 0 or done == steps else None
