"""States of the pool where data has its answers begin, if that is not where the prompts end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pact_plugin.data.generation import inspecting
from pact_plugin.data.responses import ENDING
from pact_plugin.model.wrappers import unwrap
from pact_plugin.reference.cache import read_states, write_states
from pact_plugin.reference.pool import Pool, end_states, ending
from pact_plugin.reference.source import Source


def read_where(pool: Pool, source: Source, endings: Sequence[tuple[int, ...]]) -> Pool:
    """The pool with states also where data has its answers begin, if that is within what the prompts end with.

    Some frameworks count the line break behind `assistant`, or more of the chat format, as part of an answer. States
    are kept beside the answers, as a run that goes on elsewhere must have the same ones.

    Args:
        pool: What the aligned model was asked.
        source: The aligned model.
        endings: The last tokens before the data's answers (see `endings_of`).
    """
    form = ending([one.prompt_ids for one in pool.asked], None)
    for left_out in range(1, len(form)):
        behind = form[: len(form) - left_out][-ENDING:]
        if behind not in pool.endings and any(one[-len(behind) :] == behind for one in endings):
            states = _states(pool, source, left_out)
            hidden = torch.cat([pool.hidden, states[None]])
            pool = replace(pool, hidden=hidden, endings=(*pool.endings, behind))
    return pool


def _states(pool: Pool, source: Source, left_out: int) -> Tensor:
    """[N, d] final hidden states, `left_out` tokens before the prompts' ends."""
    prompts = [one.prompt_ids[:-left_out] for one in pool.asked]

    def read(file: Path) -> Tensor:
        hidden, _ = read_states(file)
        if len(hidden) != len(prompts):
            raise ValueError("not of these prompts")
        return hidden

    def make() -> Tensor:
        with inspecting(unwrap(source.model)), source.session():
            return end_states(source, prompts)

    return pool.cache.kept(f"{pool.key}.{left_out}.states.safetensors", read, make, write_states)
