"""Pools that were asked before: a file for each model, so that the next run of the same model generates nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from tqdm.auto import tqdm

from pact_plugin.data.files import written_whole
from pact_plugin.data.generation import Generation, device_of, prompt_ends, warn_without_chat_template
from pact_plugin.data.prompts import Prompt
from pact_plugin.errors import ConfigError, ReferenceModelError, TokenFileError
from pact_plugin.model.ranks import WHOLE_ON_EVERY_RANK, all_gather_object, broadcast_object, rank
from pact_plugin.reference.pool import BATCH, JUDGED_TOKENS, Pool, PoolAnswer, ask, ending, refuses
from pact_plugin.reference.source import Source
from pact_plugin.tokens.checks import check_helpful, check_refusals
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint
from pact_plugin.tokens.select import Selection, choose_from_answers

logger = logging.getLogger("pact_plugin")

CACHE = "PACT_CACHE"
"""Environment variable that names the folder."""
_FORMAT = "pact-pool 2"
_CHOICE = "the first position for half"
"""How tokens are chosen from answers; those that were chosen otherwise are not used."""


def cache_folder() -> Path:
    """Where answers are kept: `$PACT_CACHE`, else `pact_plugin` in the user's cache folder.

    Raises:
        ConfigError: There is no such folder.
    """
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pact_plugin"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder to keep the model's answers in",
            key=f"${CACHE}",
            remedy=f"Set ${CACHE} to a folder.",
        ) from error


def pool_of(source: Source, tokenizer: Any, prompts: Sequence[Prompt], how: Generation | None = None) -> Pool:
    """The aligned model's answers to some prompts: those kept, or new ones, which are kept then.

    Answers belong to the values of the model's weights, to the prompts' token ids (so to the tokenizer and its chat
    template) and to the length of answers. A type that holds the stored values, as TRL's float32 does, changes nothing;
    one that rounds them, as 4 bits do, makes another model. Whether they refuse is judged anew each time.

    Args:
        source: The aligned model.
        tokenizer: Its tokenizer.
        prompts: Distinct prompts.
        how: Length of answers, prompts at a time, and what reports progress. Default: a progress bar.

    Raises:
        ConfigError: They have to be asked, and the model has no method `generate`.
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
    file = cache_folder() / f"{key}.safetensors"
    kept = broadcast_object(_read(file, key, tokenizer, prompts, ends))
    if kept is not None:
        logger.info("PACT: the aligned model's answers to %d prompts are those in %s", len(prompts), file)
        return kept
    if device_of(source.model).type == "cpu" and torch.accelerator.is_available():
        logger.warning(
            "PACT: the model is still on the CPU, as under FSDP and DeepSpeed, and answers there: slowly, and on every "
            "rank. Move it first, `trainer.model.to(trainer.accelerator.device)`, where an accelerator holds it; or "
            "let it answer beforehand, by `pact-plugin tokens select MODEL`, which keeps that in %s",
            file.parent,
        )
    said = "PACT: the model answers prompts, once"
    with tqdm(desc=said, total=len(prompts), unit=" prompts", disable=how is not None or rank() != 0) as bar:
        how = how or Generation(JUDGED_TOKENS, BATCH, lambda done: bar.update(done - bar.n))
        pool = ask(source, tokenizer, prompts, ends, how)
    # Answers that differ by rounding would choose other tokens and anchors on each rank.
    pool = broadcast_object(replace(pool, key=key))
    keep(file, lambda path: _write(path, pool))
    return pool


def tokens_of(pool: Pool, source: Source, tokenizer: Any, top_k: int) -> SafetyTokens:
    """The safety tokens of the aligned model, chosen from its answers, kept beside them (clause C8).

    Args:
        pool: Its answers.
        source: The aligned model.
        tokenizer: Its tokenizer.
        top_k: Number of tokens K.

    Raises:
        ConfigError: It refuses fewer than 8 harmful prompts, or helps with fewer than 8 benign ones.

    Warns:
        UserWarning: It refuses fewer than half of the harmful prompts.
    """
    refusals, helpful = pool.pairs("harmful"), pool.pairs("benign")
    asked = Counter(answer.kind for answer in pool.asked)
    check_refusals(len(refusals), asked["harmful"])
    check_helpful(len(helpful), asked["benign"])
    content = json.dumps(
        [_CHOICE, tokenizer_fingerprint(tokenizer), top_k, sorted(refusals), sorted(helpful)]
    )
    file = (
        cache_folder() / f"{pool.key}.{hashlib.sha256(content.encode()).hexdigest()[:16]}.tokens.safetensors"
    )
    kept = broadcast_object(_read_tokens(file))
    if kept is not None:
        return kept
    logger.info(
        "PACT: `safety_tokens` is unset; choosing them from %d refusals and %d helpful answers of the model itself",
        len(refusals),
        len(helpful),
    )
    with source.session():
        how = Selection(top_k=top_k, max_new_tokens=JUDGED_TOKENS)
        chosen = choose_from_answers(source.model, tokenizer, refusals, helpful, how)
    totals = {f"{kind}_prompts": str(count) for kind, count in asked.items()}
    tokens = broadcast_object(replace(chosen, provenance={**chosen.provenance, **totals}))
    keep(file, tokens.save)
    return tokens


def _key(source: Source, ends: Sequence[Sequence[list[int]]]) -> str:
    model = source.fingerprint(any_type=True).values
    return hashlib.sha256(json.dumps([_FORMAT, model, JUDGED_TOKENS, ends]).encode()).hexdigest()[:32]


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file, on the first rank; it is only a saving, so where it cannot be written a warning says so."""
    if rank() != 0:
        return
    try:
        write(file)
    except (SafetensorError, OSError) as error:
        logger.warning(
            "PACT: %s cannot be written (%s), so the next run asks again. Name another folder with $%s.",
            file,
            error,
            CACHE,
        )


def _write(file: Path, pool: Pool) -> None:
    said = json.dumps([one.answer for one in pool.asked])
    with written_whole(file) as part:
        # `save_file` makes files that their owner alone may read, and a team may share the folder.
        part.write_bytes(serialize({"hidden": pool.hidden}, metadata={"answers": said}))


def _read_tokens(file: Path) -> SafetyTokens | None:
    """What a file holds; None where there is none, or not a whole one."""
    try:
        return SafetyTokens.load(file) if file.is_file() else None
    except (TokenFileError, OSError):
        return None


def _read(
    file: Path, key: str, tokenizer: Any, prompts: Sequence[Prompt], ends: Sequence[Sequence[list[int]]]
) -> Pool | None:
    """What a file holds; None where there is none, or not a whole one: it is only a saving."""
    try:
        with safe_open(file, framework="pt") as opened:
            said = json.loads(opened.metadata()["answers"])
            hidden: Tensor = opened.get_tensor("hidden")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    if hidden.shape[:2] != (len(ends), len(prompts)) or len(said) != len(prompts):
        return None
    asked = [
        PoolAnswer(prompt.prompt, prompt.kind, ids, answer, refuses(tokenizer, answer))
        for prompt, ids, answer in zip(prompts, ends[0], said, strict=True)
    ]
    return Pool(tuple(asked), hidden, tuple(map(ending, ends)), key)
