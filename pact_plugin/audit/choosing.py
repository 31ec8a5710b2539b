"""Safety tokens from the reference's answers to an audit's prompts, where none are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pact_plugin.audit.reading import Answers
from pact_plugin.data.generation import Pair, Progress
from pact_plugin.data.prompts import Kind, Prompt
from pact_plugin.judge import is_refusal
from pact_plugin.tokens.checks import MINIMUM_ANSWERS
from pact_plugin.tokens.safety_tokens import SafetyTokens
from pact_plugin.tokens.select import Selection, choose_from_answers


def choose(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    said: Answers,
    batch_size: int,
    progress: Progress | None,
) -> tuple[SafetyTokens | None, list[str]]:
    """Safety tokens from what the reference said; none, and a note, if it refused or helped too rarely.

    Args:
        model: The reference.
        tokenizer: Its tokenizer.
        prompts: What it was asked.
        said: One answer for each prompt.
        batch_size: Answers at a time.
        progress: Called with (done, total, description).
    """
    refused = [is_refusal(text) for text in said.texts]

    def taken(kind: Kind, wanted: bool) -> dict[str, Pair]:
        rows = zip(prompts, refused, said.pairs(), strict=True)
        return {
            one.prompt: pair for one, flag, pair in rows if one.kind == kind and flag == wanted and pair[1]
        }

    refusals, helpful = taken("harmful", True), taken("benign", False)
    if min(len(refusals), len(helpful)) < MINIMUM_ANSWERS:
        return None, [
            f"Divergence was not measured: choosing safety tokens takes {MINIMUM_ANSWERS} refusals and "
            f"{MINIMUM_ANSWERS} helpful answers of the reference, and there are {len(refusals)} and "
            f"{len(helpful)}. Give `safety_tokens`, or more prompts."
        ]
    how = Selection(batch_size=batch_size)
    return choose_from_answers(model, tokenizer, refusals, helpful, how, progress=_lowered(progress)), []


def _lowered(progress: Progress | None) -> Progress | None:
    """Descriptions of the audit stand behind a colon."""
    if progress is None:
        return None
    return lambda done, total, description: progress(done, total, description.lower())
