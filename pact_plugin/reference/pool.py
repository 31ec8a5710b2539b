"""A pool of prompts, and what the aligned model makes of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.data.documents import Row
from pact_plugin.data.generation import Generation, Pair, answers, inspecting, longest_first
from pact_plugin.data.prompts import Kind, Prompt
from pact_plugin.data.responses import ENDING
from pact_plugin.errors import ConfigError
from pact_plugin.judge import answer_refuses
from pact_plugin.model.wrappers import unwrap
from pact_plugin.reference.cache import NOWHERE_ELSE, Cache
from pact_plugin.reference.columns import not_finite
from pact_plugin.reference.passes import states_of
from pact_plugin.reference.probe import Probe, fit_probe
from pact_plugin.reference.source import Source

logger = logging.getLogger("pact_plugin")

BATCH = 64
"""Prompts at a time."""


@dataclass(frozen=True)
class PoolAnswer:
    """A prompt, and the aligned model's answer to it.

    Args:
        prompt: The prompt's text.
        kind: Whether it is harmful or benign.
        prompt_ids: Its token ids up to where the answer begins.
        answer_ids: Those of the greedy answer, up to (not including) its first special token; may be empty.
        refused: Whether the judge calls the answer a refusal.
    """

    prompt: str
    kind: Kind
    prompt_ids: list[int]
    answer_ids: list[int]
    refused: bool

    @property
    def pair(self) -> Pair:
        """Prompt and answer, as token ids."""
        return self.prompt_ids, self.answer_ids

    @property
    def as_expected(self) -> bool:
        """Whether the answer is as the kind asks for: harmful ones are refused, benign ones are not."""
        return bool(self.answer_ids) and self.refused == (self.kind == "harmful")


@dataclass(frozen=True, eq=False)
class Pool:
    """The aligned model's answers to some prompts, and its states at their ends.

    Args:
        asked: Each prompt with its answer.
        hidden: The final hidden states at the prompts' ends: where the answers begin, and, where that is elsewhere,
            where they begin in training data.
        endings: For each of these E places, the last tokens before it that all prompts have in common.
        key: 32 hexadecimal digits of the model and the prompts.
        cache: Where it is kept, and what is made of it.
    """

    asked: tuple[PoolAnswer, ...]
    hidden: Float[Tensor, "E N d"]
    endings: tuple[tuple[int, ...], ...]
    key: str = ""
    cache: Cache = NOWHERE_ELSE

    @classmethod
    def judged(
        cls,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        ends: Sequence[Sequence[list[int]]],
        said: Sequence[list[int]],
        hidden: Float[Tensor, "E N d"],
    ) -> Pool:
        """From the answers' token ids and the states; the judge says here which refuse. The rest is as for `ask`."""
        asked = tuple(
            PoolAnswer(prompt.prompt, prompt.kind, ids, answer, answer_refuses(tokenizer, answer))
            for prompt, ids, answer in zip(prompts, ends[0], said, strict=True)
        )
        return cls(asked, hidden, tuple(map(ending, ends)))

    @cached_property
    def probe(self) -> Probe:
        """What tells harmful prompts from benign ones.

        Raises:
            ConfigError: There are too few prompts of a kind.
        """
        found = fit_probe(self.hidden, [one.kind == "harmful" for one in self.asked], self.endings)
        logger.info(
            "PACT easing: the aligned model tells harmful prompts from benign ones with an AUC of %.3f "
            "(over %d prompts, each left out once)",
            found.auc,
            len(self.asked),
        )
        return found

    def of(self, prompts: Sequence[Prompt]) -> list[PoolAnswer]:
        """The answers to these prompts, in this order."""
        by_text = {one.prompt: one for one in self.asked}
        return [by_text[one.prompt] for one in prompts]

    def pairs(self, kind: Kind) -> dict[str, Pair]:
        """Harmful prompts that are refused, or benign ones that are helped with, with their answers."""
        return {one.prompt: one.pair for one in self.asked if one.kind == kind and one.as_expected}


def ask(
    source: Source,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    ends: Sequence[Sequence[list[int]]],
    how: Generation,
) -> Pool:
    """Let the aligned model answer prompts, once.

    Args:
        source: The aligned model.
        tokenizer: Its tokenizer.
        prompts: Distinct prompts.
        ends: Their token ids up to where the answer begins, by which they are asked, and up to each other place where
            states are wanted (see `prompt_ends`).
        how: Length of answers, prompts at a time, and what reports progress.

    Raises:
        ConfigError: The model has no method `generate`.
        NonFiniteError: Its hidden states are NaN or infinite, as where float16 overflows.
    """
    model = unwrap(source.model)
    if not hasattr(model, "generate"):
        raise ConfigError(
            "the model has no method `generate`, by which it could answer",
            key="model",
            remedy="Use a model of transformers; or name `safety_tokens`, with `easing: false`, `anchors: false` and "
            "`hold_data: true`.",
        )
    with inspecting(model), source.session():
        said = answers(model, tokenizer, ends[0], how)
        hidden = torch.stack([end_states(source, prompts_to, how.batch_size) for prompts_to in ends])
    if not bool(hidden.isfinite().all()):
        raise not_finite()
    return Pool.judged(tokenizer, prompts, ends, said, hidden)


def ending(prompts: Sequence[list[int]], limit: int | None = ENDING) -> tuple[int, ...]:
    """The last tokens that all prompts have in common; `limit` at most, or all of them."""
    last = zip(*[prompt[::-1][:limit] for prompt in prompts], strict=False)
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, last))
    return tuple(prompts[0][len(prompts[0]) - common :])


def end_states(source: Source, prompts: Sequence[list[int]], at_a_time: int = BATCH) -> Float[Tensor, "N d"]:
    """The final hidden states at the ends of prompts, on the host; to be called within a session of the source."""
    state_of: dict[int, Tensor] = {}
    for places in longest_first(prompts, at_a_time):
        rows = [Row(np.asarray(prompts[place]), np.asarray([len(prompts[place]) - 1])) for place in places]
        states = states_of(
            rows,
            source.head.device,
            lambda inputs: source.hidden((), inputs),
            flat=source.head.keeps_documents_apart,
        )
        state_of.update(zip(places, states.float().cpu(), strict=True))
    return torch.stack([state_of[place] for place in range(len(prompts))])
