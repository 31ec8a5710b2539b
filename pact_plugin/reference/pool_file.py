"""Pools that were asked before: a file for each model, so that the next run of the same model generates nothing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pact_plugin.data.chat_template import prompt_ends, warn_without_chat_template
from pact_plugin.data.generation import Generation, device_of
from pact_plugin.data.prompts import Prompt
from pact_plugin.errors import ReferenceModelError
from pact_plugin.judge.text import JUDGED_TOKENS
from pact_plugin.model.ranks import WHOLE_ON_EVERY_RANK, all_gather_object, rank
from pact_plugin.reference.cache import NOWHERE_ELSE, Cache, cache_folder, read_states, write_states
from pact_plugin.reference.pool import BATCH, Pool, ask
from pact_plugin.reference.source import Source

logger = logging.getLogger("pact_plugin")

_FORMAT = "pact-pool 2"


def pool_of(
    source: Source,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    how: Generation | None = None,
    *,
    cache: Cache = NOWHERE_ELSE,
) -> Pool:
    """The aligned model's answers to some prompts: those kept, or new ones, which are kept then.

    Answers belong to the values of the model's weights, to the prompts' token ids (so to the tokenizer and its chat
    template) and to the length of answers. A type that holds the stored values, as TRL's float32 does, changes nothing;
    one that rounds them, as 4 bits do, makes another model. Whether they refuse is judged anew each time.

    Args:
        source: The aligned model.
        tokenizer: Its tokenizer.
        prompts: Distinct prompts.
        how: Length of answers, prompts at a time, and what reports progress. Default: a progress bar.
        cache: Where they are kept.

    Raises:
        ConfigError: They have to be asked, and the model has no method `generate`.
        NonFiniteError: They have to be asked, and the model's hidden states are NaN or infinite.
        ReferenceModelError: The ranks hold different weights.

    Warns:
        UserWarning: The tokenizer has no chat template.
    """
    warn_without_chat_template(tokenizer)
    ends = prompt_ends(tokenizer, [prompt.prompt for prompt in prompts])
    key = _key(source, ends)
    if len(set(all_gather_object(key))) > 1:
        raise ReferenceModelError(
            "the ranks hold different weights, so they have no aligned model in common",
            key="model",
            remedy=WHOLE_ON_EVERY_RANK,
        )

    def read(file: Path) -> Pool:
        hidden, metadata = read_states(file)
        said = json.loads(metadata["answers"])
        if hidden.shape[:2] != (len(ends), len(prompts)):
            raise ValueError("not of these prompts")
        if not bool(hidden.isfinite().all()):
            raise ValueError("not finite")
        pool = Pool.judged(tokenizer, prompts, ends, said, hidden)
        logger.info("PACT: the aligned model's answers to %d prompts are those in %s", len(prompts), file)
        return pool

    def write(file: Path, pool: Pool) -> None:
        write_states(file, pool.hidden, answers=json.dumps([one.answer_ids for one in pool.asked]))

    def make() -> Pool:
        return _asked(source, tokenizer, prompts, ends, how)

    return replace(cache.kept(f"{key}.safetensors", read, make, write), key=key, cache=cache)


def _key(source: Source, ends: Sequence[Sequence[list[int]]]) -> str:
    model = source.fingerprint(any_type=True).values
    return hashlib.sha256(json.dumps([_FORMAT, model, JUDGED_TOKENS, ends]).encode()).hexdigest()[:32]


def _asked(
    source: Source,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    ends: Sequence[Sequence[list[int]]],
    how: Generation | None,
) -> Pool:
    if device_of(source.model).type == "cpu" and torch.accelerator.is_available():
        logger.warning(
            "PACT: the model is still on the CPU, as under FSDP and DeepSpeed, and answers there: slowly, and on every "
            "rank. Move it first, `trainer.model.to(trainer.accelerator.device)`, where an accelerator holds it; or "
            "let it answer beforehand, by `pact-plugin tokens select MODEL`, which keeps that in %s",
            cache_folder(),
        )
    said = "PACT: the model answers prompts, once"
    with tqdm(desc=said, total=len(prompts), unit=" prompts", disable=how is not None or rank() != 0) as bar:
        how = how or Generation(JUDGED_TOKENS, BATCH, lambda done: bar.update(done - bar.n))
        return ask(source, tokenizer, prompts, ends, how)
