"""Which prompts are anchors: those to which the aligned model's answer is of the kind that it should be (C10.1)."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pact_plugin.config import Anchors
from pact_plugin.data.generation import Generation, Pair, answers, inspecting, user_prompt
from pact_plugin.data.prompt_files import load_file
from pact_plugin.data.prompts import ANCHORS, KINDS, AuditPrompt, Kind, for_anchors
from pact_plugin.errors import ConfigError
from pact_plugin.model.ranks import of_first_rank
from pact_plugin.model.wrappers import unwrap
from pact_plugin.reference.source import Source

logger = logging.getLogger("pact_plugin")

BATCH = 64
"""Prompts at a time."""
REFUSES = 0.5
"""Least probability that the safety tokens have together at the first position of an answer that is a refusal."""


def anchor_prompts(source: str) -> dict[Kind, list[str]]:
    """Prompts of each kind, shuffled.

    The order is of the prompts' SHA-256 digests: the same on every machine, and whatever order the file has, so that a
    short run, too, meets every category of it.

    Args:
        source: `benign`, `harmful`, `both` or a file.

    Raises:
        ConfigError: It cannot be read.
    """
    wanted = [kind for kind in KINDS if source in (kind, "both")]
    try:
        prompts = for_anchors() if wanted else load_file(Path(source)).limited(ANCHORS)
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            key="anchors.prompts",
            value=source,
            remedy=f"{error.remedy} Or name `benign`, `harmful` or `both`.",
        ) from error
    shuffled = sorted(prompts.prompts, key=_digest)
    return {kind: [one.prompt for one in shuffled if one.kind == kind] for kind in wanted or KINDS}


def anchor_answers(
    settings: Anchors, tokenizer: Any, source: Source, ids: Int[Tensor, " K"]
) -> dict[Kind, list[Pair]]:
    """The prompts of each kind that are anchors, with the first tokens of the aligned model's answers.

    Those that it would answer otherwise than their kind asks for are left out: a harmful one whose answer's first
    token is a safety token with a probability below `REFUSES`, a harmless one where it is at least that.

    Args:
        settings: Of the anchors.
        tokenizer: The model's tokenizer.
        source: The aligned model.
        ids: The safety tokens.

    Raises:
        ConfigError: The prompts cannot be read, or are of one kind and a ratio is set; or the aligned model cannot
            answer or answers none of them.

    Warns:
        UserWarning: Less than half of a kind would be left; then none of that kind is left out.
    """
    asked = anchor_prompts(settings.prompts)
    if "ratio" in settings.model_fields_set and not all(asked.values()):
        raise ConfigError(
            "the prompts are of one kind, so there is no ratio",
            key="anchors.ratio",
            value=settings.ratio,
            remedy=f"Remove `ratio`, or add prompts of the other kind to {settings.prompts}.",
        )
    logger.info("PACT anchors: the aligned model answers %d prompts, once", sum(map(len, asked.values())))
    kept: dict[Kind, list[Pair]] = {}
    for kind, prompts in asked.items():
        pairs, mass = _answered(
            settings, [user_prompt(tokenizer, one) for one in prompts], tokenizer, source, ids
        )
        kept[kind] = _rightly(kind, pairs, mass)
    # Answers that differ by rounding would make another number of passes.
    kept = of_first_rank(kept)
    if not any(kept.values()):
        raise ConfigError(
            "the aligned model answers none of these prompts",
            key="anchors.prompts",
            value=settings.prompts,
            remedy="Check its chat template, name other prompts, or set `anchors: false`.",
        )
    return kept


def turns(harmful: int, benign: int, ratio: int) -> list[int]:
    """Whose turn it is: after each harmful anchor `ratio` benign ones (C10.4), until all have had theirs.

    Args:
        harmful: How many harmful ones there are; their numbers are the first.
        benign: How many benign ones there are.
        ratio: 1 or more.

    Returns:
        Numbers of anchors. The kind of which there are too few begins again.
    """
    if not harmful or not benign:
        return list(range(harmful + benign))
    found = []
    for number in range(max(harmful, -(-benign // ratio))):
        found.append(number % harmful)
        found += [harmful + (number * ratio + i) % benign for i in range(ratio)]
    return found


def _answered(
    settings: Anchors,
    asked: Sequence[list[int]],
    tokenizer: Any,
    source: Source,
    ids: Int[Tensor, " K"],
) -> tuple[list[Pair], list[float]]:
    """The prompts with the aligned model's answers, where it has one, and P(S) at the first token of each."""
    model = unwrap(source.model)
    if not hasattr(model, "generate"):
        raise ConfigError(
            "the model has no method `generate`, by which it could answer",
            key="anchors",
            value=settings.per_step,
            remedy="Use a model of transformers, or set `anchors: false`.",
        )
    mass = [0.0] * len(asked)

    def first(places: Sequence[int], logits: Tensor) -> None:
        for place, p in zip(places, _mass(logits, ids), strict=True):
            mass[place] = p

    with inspecting(model), source.session():
        said = answers(
            model,
            tokenizer,
            asked,
            Generation(settings.tokens, BATCH),
            first=first,
        )
    found = [((prompt, answer), p) for prompt, answer, p in zip(asked, said, mass, strict=True) if answer]
    return [pair for pair, _ in found], [p for _, p in found]


def _mass(logits: Tensor, ids: Int[Tensor, " K"]) -> list[float]:
    return torch.softmax(logits.float(), dim=-1)[:, ids.to(logits.device)].sum(dim=-1).tolist()


def _rightly(kind: Kind, pairs: list[Pair], mass: Sequence[float]) -> list[Pair]:
    """Those that the aligned model answers as their kind asks for; all of them where these are the fewer."""
    kept = [pair for pair, p in zip(pairs, mass, strict=True) if (p >= REFUSES) == (kind == "harmful")]
    if 2 * len(kept) >= len(pairs):
        logger.info(
            "PACT anchors: %d of %d %s prompts, whose answer is as it should be", len(kept), len(pairs), kind
        )
        return kept
    said = "would refuse" if kind == "harmful" else "would answer"
    warnings.warn(
        f"PACT: the aligned model {said} only {len(kept)} of {len(pairs)} {kind} anchors, by its probability of the "
        "safety tokens at the first word, and is held to that. Is it the aligned model, with its chat template and its "
        "own safety tokens? Else name prompts of your own with `anchors: {prompts: ...}`.",
        stacklevel=6,
    )
    return pairs


def _digest(one: AuditPrompt) -> bytes:
    return hashlib.sha256(one.prompt.encode("utf-8", "surrogatepass")).digest()
