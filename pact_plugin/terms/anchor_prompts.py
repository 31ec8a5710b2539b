"""Which prompts are anchors: those that the aligned model answers as their kind asks for (spec clause C10.1)."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from pact_plugin.config import Anchors
from pact_plugin.data.generation import Pair
from pact_plugin.data.prompt_files import load_file
from pact_plugin.data.prompts import KINDS, OWN_ANCHORS, Kind, Prompt, for_pool
from pact_plugin.errors import ConfigError
from pact_plugin.reference.pool import PoolAnswer

logger = logging.getLogger("pact_plugin")

ENOUGH = 8
"""A kind keeps only the prompts answered as expected if these are at least 8, or at least half. Else it keeps all, with
a warning."""


def anchor_prompts(settings: Anchors) -> list[Prompt]:
    """Prompts that may become anchors, shuffled.

    The order is of the prompts' SHA-256 digests: the same on every machine, and whatever order the file has, so that a
    short run, too, meets every category of it.

    Args:
        settings: `prompts`: `benign`, `harmful`, `both` or a file.

    Raises:
        ConfigError: They cannot be read.
    """
    wanted = [kind for kind in KINDS if settings.prompts in (kind, "both")]
    try:
        prompts = for_pool() if wanted else load_file(Path(settings.prompts)).limited(OWN_ANCHORS)
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            key="anchors.prompts",
            value=settings.prompts,
            remedy=f"{error.remedy} Or name `benign`, `harmful` or `both`.",
        ) from error
    return [prompt for prompt in sorted(prompts.prompts, key=_digest) if not wanted or prompt.kind in wanted]


def anchors_from(settings: Anchors, asked: Sequence[PoolAnswer]) -> dict[Kind, list[Pair]]:
    """The prompts of each kind that are anchors, with the first tokens of the aligned model's answers.

    A harmful prompt is one if the aligned model refuses it, a benign one if it does not. Where a kind has fewer than
    `ENOUGH` of these, and less than half, all of the kind are held, whatever the answer.

    Args:
        settings: Of the anchors.
        asked: What the aligned model answers to `anchor_prompts`, in their order.

    Raises:
        ConfigError: The aligned model answers none of them.

    Warns:
        UserWarning: All of a kind are held.
    """
    kept: dict[Kind, list[Pair]] = {}
    for kind in KINDS:
        of_kind = [answer for answer in asked if answer.kind == kind]
        right = [answer for answer in of_kind if answer.as_expected]
        counted = _counted(kind, right, of_kind)
        if of_kind and len(right) < min(ENOUGH, len(of_kind) / 2):
            warnings.warn(
                f"PACT: {counted}, and is held to what it answers to all of them. Check that this "
                "is the aligned model, that it answers without reasoning first, and that its tokenizer has its chat "
                "template; or name prompts of your own with `anchors: {prompts: FILE}`.",
                stacklevel=2,
            )
            right = [answer for answer in of_kind if answer.answer_ids]
        elif of_kind:
            logger.info("PACT anchors: %s; these are held", counted)
        kept[kind] = [(answer.prompt_ids, answer.answer_ids[: settings.tokens]) for answer in right]
    if not any(kept.values()):
        raise ConfigError(
            "the aligned model answers none of these prompts",
            key="anchors.prompts",
            value=settings.prompts,
            remedy="Check its chat template, name other prompts, or set `anchors: false`.",
        )
    return kept


def _counted(kind: Kind, right: Sequence[PoolAnswer], of_kind: Sequence[PoolAnswer]) -> str:
    said = "refuses" if kind == "harmful" else "helps with"
    return f"the aligned model {said} {len(right)} of {len(of_kind)} {kind} prompts"


def _digest(one: Prompt) -> bytes:
    return hashlib.sha256(one.prompt.encode("utf-8", "surrogatepass")).digest()
