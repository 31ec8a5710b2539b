"""How far fine-tuning moves P(S) at the first word of an answer, in log odds: finer than which prompts change sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.field import data as field_data
from benchmarks.field.along import adapter_of
from benchmarks.field.data import Data
from benchmarks.field.pool import pool_prompts
from benchmarks.field.run import merged
from benchmarks.field.settings import ALIGNED, Cell, Split
from benchmarks.field.start import Start
from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import inspecting
from pact_plugin.data.prompts import KINDS
from pact_plugin.reference.pool import end_states
from pact_plugin.reference.source import build_source

Shifts = dict[str, dict[str, float]]
"""By set of prompts: `before`, the aligned model's median P(S); the mean shift of its log odds in nats, with its 95%
bootstrap interval; the number of prompts."""


def sets_of(start: Start, data: Data, split: Split) -> dict[str, list[str]]:
    """What is asked, and the prompts that become anchors: at most `ask` of each."""
    limit = start.sizes.ask
    found = field_data.asked(data, split, limit, pool_prompts())
    return found | {f"{kind} anchors": list(start.asked.pairs(kind))[:limit] for kind in KINDS}


def shifts(
    start: Start, sets: Mapping[str, Sequence[str]], cells: Sequence[Cell], say: Callable[[str], None]
) -> dict[str, Shifts]:
    """The shift by each run, to the aligned model.

    Args:
        start: The aligned model.
        sets: Prompts by name.
        cells: Runs whose adapters are in the folder.
        say: Of progress.

    Raises:
        ConfigError: A run is not in the folder.
    """
    folders = [adapter_of(start.folder, cell) for cell in cells]
    say(ALIGNED)
    before = {name: _log_odds(start, start.model, prompts) for name, prompts in sets.items()}
    found: dict[str, Shifts] = {}
    for cell, folder in zip(cells, folders, strict=True):
        say(cell.name)
        model = merged(start, folder)
        found[cell.name] = {
            name: _summary(before[name], _log_odds(start, model, prompts)) for name, prompts in sets.items()
        }
    return found


def _log_odds(start: Start, model: Any, prompts: Sequence[str]) -> Float[Tensor, " N"]:
    """Of P(S) at the first token of the answer, in nats."""
    source = build_source("itself", model)
    with inspecting(model), source.session():
        hidden = end_states(source, user_prompts(start.tokenizer, prompts)).to(model.dtype)
        p = torch.cat([source.project(states).double().softmax(-1) for states in hidden.split(64)])
    return p[:, torch.tensor(start.tokens.positive.ids)].sum(-1).logit()


def _summary(before: Float[Tensor, " N"], after: Float[Tensor, " N"]) -> dict[str, float]:
    moved = (after - before).tolist()
    low, high = bootstrap(moved, [1] * len(moved))
    return {
        "before": float(before.sigmoid().median()),
        "shift": sum(moved) / len(moved),
        "low": low,
        "high": high,
        "prompts": len(moved),
    }
