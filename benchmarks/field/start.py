"""The aligned model that every run starts from, and what is asked of it once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.field.kept import locked, read, write_whole
from benchmarks.field.settings import ANSWER_TOKENS, Sizes
from pact_plugin import PactConfig, SafetyTokens
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import Generation, answers, inspecting
from pact_plugin.data.prompts import for_pool
from pact_plugin.reference.cache import CACHE
from pact_plugin.reference.pool import Pool
from pact_plugin.reference.pool_file import pool_of
from pact_plugin.reference.pool_tokens import tokens_of
from pact_plugin.reference.source import Source, build_source

ASKED_AT_A_TIME = 64
TOP_K = PactConfig().advanced.top_k


@dataclass(frozen=True)
class Start:
    """The aligned model.

    Attributes:
        model: Never trained, runs train copies.
        tokenizer: Its tokenizer.
        folder: Of the results, where what is made once is kept.
        sizes: What the runs have in common.
        tokens_file: Of the safety tokens; by default chosen from the pool.
    """

    model: Any
    tokenizer: Any
    folder: Path
    sizes: Sizes
    tokens_file: Path | None = None

    @cached_property
    def asked(self) -> Pool:
        """The pool, answered by it: kept as pact-plugin keeps it, in the folder."""
        os.environ[CACHE] = str(self.folder / "pool")
        begun = time.perf_counter()
        with locked(self.folder, "pool"):
            pool = pool_of(self.source, self.tokenizer, for_pool().prompts)
            seconds = self.folder / "pool" / "seconds.json"
            if not seconds.is_file():
                write_whole(seconds, {"seconds": time.perf_counter() - begun})
        return pool

    @property
    def asked_seconds(self) -> float:
        """That answering the pool took, once."""
        return float(read(self.folder / "pool" / "seconds.json")["seconds"])

    @cached_property
    def tokens(self) -> SafetyTokens:
        """The safety tokens, for methods that have some: those of the pool, unless a file is named."""
        if self.tokens_file is not None:
            return SafetyTokens.load(self.tokens_file)
        pool = self.asked
        with locked(self.folder, "pool"):
            return tokens_of(pool, self.source, self.tokenizer, TOP_K)

    @cached_property
    def source(self) -> Source:
        """It as pact-plugin reads it."""
        return build_source("itself", self.model)

    def answers(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        """Its greedy answers as token ids."""
        with inspecting(self.model):
            asked = user_prompts(self.tokenizer, prompts)
            return answers(self.model, self.tokenizer, asked, Generation(tokens, ASKED_AT_A_TIME))

    def kept_answers(self, prompts: Sequence[str]) -> tuple[dict[str, str], float]:
        """Its answers to prompts of the data, asked once; and the seconds of asking, beyond those of this call."""
        called = time.perf_counter()
        path = self.folder / "answers.json"
        with locked(self.folder, "answers"):
            kept: dict[str, Any] = read(path) if path.is_file() else {"answers": {}, "seconds": 0.0}
            missing = [one for one in dict.fromkeys(prompts) if one not in kept["answers"]]
            if missing:
                begun = time.perf_counter()
                found = self.answers(missing, ANSWER_TOKENS)
                kept["answers"] |= dict(zip(missing, map(self.tokenizer.decode, found), strict=True))
                kept["seconds"] += time.perf_counter() - begun
                write_whole(path, kept)
        taken = kept["seconds"] * len(set(prompts)) / len(kept["answers"])
        return {one: kept["answers"][one] for one in prompts}, taken - (time.perf_counter() - called)


def load(sizes: Sizes, folder: Path, tokens_file: Path | None = None) -> Start:
    """Load the aligned model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(sizes.model, dtype=getattr(torch, sizes.dtype)).eval()
    return Start(
        model.requires_grad_(False), AutoTokenizer.from_pretrained(sizes.model), folder, sizes, tokens_file
    )
