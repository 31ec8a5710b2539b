"""The safety tokens of the aligned model, chosen from its answers to the pool (clause C8 of spec/PACT.md)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import replace
from typing import Any

from pact_plugin.judge.text import JUDGED_TOKENS
from pact_plugin.reference.pool import Pool
from pact_plugin.reference.source import Source
from pact_plugin.tokens.checks import check_helpful, check_refusals
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint
from pact_plugin.tokens.select import Selection, choose_from_answers

logger = logging.getLogger("pact_plugin")

_CHOICE = "the first position for half"
"""How tokens are chosen from answers; those that were chosen otherwise are not used."""


def tokens_of(pool: Pool, source: Source, tokenizer: Any, top_k: int) -> SafetyTokens:
    """The safety tokens of the aligned model, which are kept beside its answers.

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

    def choose() -> SafetyTokens:
        logger.info(
            "PACT: `safety_tokens` is unset; choosing them from %d refusals and %d helpful answers of the model itself",
            len(refusals),
            len(helpful),
        )
        with source.session():
            how = Selection(top_k=top_k, max_new_tokens=JUDGED_TOKENS)
            chosen = choose_from_answers(source.model, tokenizer, refusals, helpful, how)
        totals = {f"{kind}_prompts": str(count) for kind, count in asked.items()}
        return replace(chosen, provenance={**chosen.provenance, **totals})

    content = json.dumps(
        [_CHOICE, tokenizer_fingerprint(tokenizer), top_k, sorted(refusals), sorted(helpful)]
    )
    name = f"{pool.key}.{hashlib.sha256(content.encode()).hexdigest()[:16]}.tokens.safetensors"
    return pool.cache.kept(name, SafetyTokens.load, choose, lambda file, tokens: tokens.save(file))
