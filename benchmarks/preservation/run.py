"""Run the cells that are not there yet, and write each as a file of its own."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.preservation.measure import Questions, everyday_answers, measure, task_items
from benchmarks.preservation.prompts import Split, everyday, prompts_of
from benchmarks.preservation.settings import Cell, Sizes
from benchmarks.preservation.training import Start, fine_tune
from pact_plugin.data.files import written_whole
from pact_plugin.data.generation import Progress
from pact_plugin.errors import ConfigError

ALIGNED = "aligned"


def run(
    cells: Sequence[Cell],
    sizes: Sizes,
    start: Start,
    output: Path,
    bars: Progress,
    *,
    split: Split = "heldout",
) -> None:
    """Run what is missing. What an interrupted call has finished is kept.

    Args:
        cells: What is compared.
        sizes: How large each run is.
        start: The aligned model.
        output: Folder of the results.
        bars: Called with (done, total, description).
        split: What is asked: the held-out prompts, or those for development, on which settings may be tuned.

    Raises:
        ConfigError: The folder holds runs of other sizes.
    """
    check_sizes(output, sizes)
    prompts = prompts_of(split, sizes.prompts)
    texts = everyday()[: sizes.everyday]
    asked = everyday_answers(start.model, start.tokenizer, texts, sizes)
    (output / "cells").mkdir(parents=True, exist_ok=True)
    info = machine.describe(torch.get_num_threads(), str(start.model.device)) | {
        "dtype": str(start.model.dtype)
    }
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    todo = [cell for cell in cells if not _path(output, cell.name).is_file()]
    for task in tasks:
        if not _path(output, f"{task}-{ALIGNED}").is_file():
            questions = Questions(prompts.harmful, prompts.benign, task_items(task, sizes.test_items), asked)
            found = measure(
                start.model,
                start.model,
                start.tokenizer,
                task,
                questions,
                sizes,
                _report(bars, len(questions), f"Generation the aligned model: {task}"),
                start.tokens.positive.ids,
            )
            _write(output, f"{task}-{ALIGNED}", {"task": task, "method": ALIGNED}, sizes, info, split, found)
    for number, cell in enumerate(todo):
        bars(number, len(todo), "Runs")
        questions = Questions(prompts.harmful, prompts.benign, task_items(cell.task, sizes.test_items), asked)
        begun = time.perf_counter()
        training = _report(bars, sizes.steps, f"Training: {cell.name}")
        model, noted = fine_tune(cell, sizes, start, output / "scratch", training)
        trained = time.perf_counter()
        asking = _report(bars, len(questions), f"Generation: {cell.name}")
        found = measure(
            model,
            start.model,
            start.tokenizer,
            cell.task,
            questions,
            sizes,
            asking,
            start.tokens.positive.ids,
        )
        found["seconds"] = {
            "training": round(trained - begun, 1),
            "asking": round(time.perf_counter() - trained, 1),
        }
        _write(output, cell.name, asdict(cell) | noted, sizes, info, split, found)
        del model
        gc.collect()
    bars(len(todo), max(len(todo), 1), "Runs")


def check_sizes(output: Path, sizes: Sizes) -> None:
    """Refuse a folder of other runs; the aligned model's own answers serve runs of every size and rate.

    Raises:
        ConfigError: The folder holds runs of other sizes.
    """
    for path in sorted((output / "cells").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Sizes(**content["sizes"])
        same = found.asking == sizes.asking if content["cell"]["method"] == ALIGNED else found == sizes
        if not same:
            raise ConfigError(
                f"{path.name} there is of a run of another size",
                key="output",
                value=str(output),
                remedy="Give another --output, or the same --preset and --items as before.",
            )


def _report(bars: Progress, total: int, description: str) -> Any:
    return lambda done: bars(min(done, total), total, description)


def _path(output: Path, name: str) -> Path:
    return output / "cells" / f"{name}.json"


def _write(
    output: Path,
    name: str,
    cell: dict[str, Any],
    sizes: Sizes,
    info: dict[str, Any],
    split: Split,
    found: dict[str, Any],
) -> None:
    content = {"cell": cell, "sizes": asdict(sizes), "split": split, "machine": info, **found}
    with written_whole(_path(output, name)) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
