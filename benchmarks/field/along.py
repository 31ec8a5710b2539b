"""P(S) along the aligned model's own refusals, before and after fine-tuning: how deep a refusal goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.field.data import HARMFUL_SETS
from benchmarks.field.kept import read, read_cell
from benchmarks.field.measure import READ_AT_A_TIME
from benchmarks.field.results import label
from benchmarks.field.run import adapter_folder, cell_path, merged
from benchmarks.field.settings import ALIGNED, ANSWER_TOKENS, Cell, Sizes, Split
from benchmarks.field.start import Start
from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.audit.reading import read as read_along
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import inspecting
from pact_plugin.errors import ConfigError

POSITIONS = 16
"""Tokens of a refusal that are looked at: as many as an anchor holds."""


def along(
    start: Start, split: Split, cells: Sequence[Cell], say: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """P(S) before each of the first 16 tokens of the refusals of the aligned model, and of each run.

    Args:
        start: The aligned model. Its answers to one half of what is asked are in the folder.
        split: That half.
        cells: Runs whose adapters are in the folder.
        say: Of progress.

    Returns:
        By method and strength, and by position: the mean over the prompts, its 95% bootstrap interval, and the prompts.

    Raises:
        ConfigError: A run is not in the folder.
    """
    prompts = refused(start.folder, replace(cells[0], method=ALIGNED), split)
    pairs = [
        (user_prompts(start.tokenizer, [one])[0], answer[:POSITIONS])
        for one, answer in zip(prompts, start.answers(prompts, ANSWER_TOKENS), strict=True)
    ]
    ids = start.tokens.positive.ids
    found: dict[str, list[dict[str, float]]] = {}
    for cell in (replace(cells[0], method=ALIGNED), *cells):
        say(label(cell))
        model = start.model if cell.method == ALIGNED else merged(start, adapter_of(start.folder, cell))
        with inspecting(model):
            read_through = read_along(model, pairs, ids, batch_size=READ_AT_A_TIME)
        found[label(cell)] = summary([one.mass for one in read_through])
    return found


def refused(folder: Path, aligned: Cell, split: Split) -> list[str]:
    """The harmful prompts that the aligned model refuses, as the folder's runs have asked it.

    Raises:
        ConfigError: It has not been asked.
    """
    path = cell_path(folder, aligned, split)
    if not path.is_file():
        raise _missing(path)
    asked: Mapping[str, Any] = read(path)["asked"]
    return [row["prompt"] for name in HARMFUL_SETS for row in asked[name] if row["refused"]]


def summary(masses: Sequence[Float[Tensor, " R"]]) -> list[dict[str, float]]:
    """Of each position, over the answers that are that long."""
    found = []
    for position in range(max(map(len, masses))):
        here = torch.stack([one[position] for one in masses if len(one) > position]).tolist()
        low, high = bootstrap(here, [1] * len(here)) if len(here) > 1 else (here[0], here[0])
        mean = sum(here) / len(here)
        found.append({"mean": mean, "low": low, "high": high, "prompts": len(here)})
    return found


def sizes_of(folder: Path, model: str) -> Sizes:
    """What the runs of a folder have in common.

    Raises:
        ConfigError: There are none, or they are of another model.
    """
    path = next((folder / "cells").glob("*.json"), None)
    if path is None:
        raise _missing(folder / "cells")
    sizes = Sizes(**read_cell(path)["origin"]["sizes"])
    if sizes.model != model:
        problem, remedy = f"the runs there are of {sizes.model}", "Give that --model, or another --output."
        raise ConfigError(problem, key="model", value=model, remedy=remedy)
    return sizes


def adapter_of(folder: Path, cell: Cell) -> Path:
    """Where what a run has trained is kept.

    Raises:
        ConfigError: The run is not in the folder.
    """
    path = adapter_folder(folder, cell)
    if not (path / "training.json").is_file():
        raise _missing(path)
    return path


def _missing(path: Path) -> ConfigError:
    return ConfigError(
        "no such run there",
        key="output",
        value=str(path),
        remedy="Run `python -m benchmarks field` with the same task, method, strength and seed.",
    )
