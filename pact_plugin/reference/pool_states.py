"""States of the pool where data has its answers begin, if that is not where the prompts end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pact_plugin.data.files import written_whole
from pact_plugin.data.generation import inspecting
from pact_plugin.data.responses import ENDING
from pact_plugin.model.ranks import broadcast_object
from pact_plugin.model.wrappers import unwrap
from pact_plugin.reference.pool import Pool, ending, ends_of
from pact_plugin.reference.pool_file import cache_folder, keep
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
    prompts = [one.prompt for one in pool.asked]
    form = ending(prompts, None)
    for left_out in range(1, len(form)):
        behind = form[: len(form) - left_out][-ENDING:]
        if behind not in pool.endings and any(one[-len(behind) :] == behind for one in endings):
            file = cache_folder() / f"{pool.key}.{left_out}.states.safetensors"
            states = broadcast_object(_read_states(file, len(prompts)))
            if states is None:
                with inspecting(unwrap(source.model)), source.session():
                    states = broadcast_object(ends_of(source, [prompt[:-left_out] for prompt in prompts]))
                keep(file, partial(_write_states, states))
            hidden = torch.cat([pool.hidden, states[None]])
            pool = replace(pool, hidden=hidden, endings=(*pool.endings, behind))
    return pool


def _write_states(states: Tensor, file: Path) -> None:
    with written_whole(file) as part:
        part.write_bytes(serialize({"hidden": states}))


def _read_states(file: Path, count: int) -> Tensor | None:
    """What a file holds; None where there is none, or not a whole one."""
    try:
        with safe_open(file, framework="pt") as opened:
            states: Tensor = opened.get_tensor("hidden")
    except (SafetensorError, OSError):
        return None
    return states if len(states) == count else None
