"""Three functions that nearly every test has computed anew from the same arguments: here once in a process.

They are pure, and take most of the time that it takes to attach a constraint to a tiny model. Their own tests call
them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pact_plugin import judge
from pact_plugin.reference import pool, pool_file

_IS_REFUSAL = judge.is_refusal


def of_prompts(tokenizer: Any, prompts: Sequence[str]) -> Hashable | None:
    """All that decides token ids; None for a tokenizer that may decide otherwise."""
    if type(tokenizer) is not PreTrainedTokenizerFast or "apply_chat_template" in vars(tokenizer):
        return None
    special = repr(tokenizer.special_tokens_map)
    return tokenizer.backend_tokenizer.to_str(), repr(tokenizer.chat_template), special, tuple(prompts)


def of_states(hidden: Tensor, harmful: Sequence[bool], endings: tuple[tuple[int, ...], ...]) -> Hashable:
    states = hidden.detach().float().cpu().numpy().tobytes()
    return states, hidden.shape, str(hidden.dtype), tuple(harmful), endings


def of_answer(tokenizer: Any, answer: Sequence[int]) -> Hashable | None:
    """All that decides whether an answer refuses; None where a test has put another judge in."""
    return (tokenizer, len(tokenizer), tuple(answer)) if judge.is_refusal is _IS_REFUSAL else None


def remembering(function: Callable[..., Any], key: Callable[..., Hashable | None]) -> Callable[..., Any]:
    known: dict[Hashable, Any] = {}

    @wraps(function)
    def remembered(*arguments: Any) -> Any:
        asked = key(*arguments)
        if asked is None:
            return function(*arguments)
        if asked not in known:
            known[asked] = function(*arguments)
        return known[asked]

    return remembered


def remember() -> None:
    """From here on, in this process."""
    pool_file.prompt_ends = remembering(pool_file.prompt_ends, of_prompts)
    pool.fit_probe = remembering(pool.fit_probe, of_states)
    pool.answer_refuses = remembering(pool.answer_refuses, of_answer)
