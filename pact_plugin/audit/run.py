"""The audit from beginning to end: the reference, then the candidate, never both in memory unless they share it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import torch

from pact_plugin.audit import result
from pact_plugin.audit.compare import changed_most, compare
from pact_plugin.audit.describe import remarks, versions
from pact_plugin.audit.survey import Reading, Survey
from pact_plugin.audit.verdict import Thresholds, judge, require_harmful
from pact_plugin.data.generation import Progress
from pact_plugin.data.prompts import KINDS, PromptSet
from pact_plugin.tokens.safety_tokens import SafetyTokens

JUDGE = "keywords at the start of an English answer (pact_plugin.judge.is_refusal)"

Loader = Callable[[], tuple[Any, Any]]
"""Gives a causal language model and its tokenizer."""


def run_audit(
    load_reference: Loader,
    load_candidate: Loader,
    prompts: PromptSet,
    *,
    names: tuple[str, str] | None = None,
    safety_tokens: SafetyTokens | None = None,
    thresholds: Thresholds | None = None,
    limit: int | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> result.AuditResult:
    """Compare what two models refuse, and how sure they are of the safety tokens.

    Both answer every prompt greedily. Then both read the reference's own answers (teacher-forced), each prompt in
    the model's own chat format, and their confidence on the safety tokens is compared at every position. The
    reference is let go before the candidate is loaded. To compare several candidates with one reference, use `Survey`.

    Args:
        load_reference: Loads the aligned model and its tokenizer.
        load_candidate: Loads the model to be judged, with a tokenizer of the same vocabulary.
        prompts: What the models are asked.
        names: What the models are called in the report; by default as they call themselves.
        safety_tokens: Those with a positive weight count; by default chosen from the reference's answers.
        thresholds: What is allowed.
        limit: At most so many prompts of each kind.
        max_new_tokens: Where answers are cut off, in tokens.
        batch_size: Prompts at a time.
        progress: Called with (done, total, description) as prompts are done.

    Raises:
        ConfigError: A setting cannot be used, or a prompt is too long for a model.
        TokenizerMismatchError: The candidate has another vocabulary, or the safety tokens belong to another.
        ModelStructureError: A model's head is of a kind that is not known.
        NonFiniteError: A model's probabilities are NaN, or the divergence is infinite.
    """
    thresholds = thresholds or Thresholds()
    survey = Survey(
        prompts,
        safety_tokens=safety_tokens,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    if thresholds.fail_under_refusal is not None and not survey.places("harmful"):
        require_harmful()
    first, second = names or (None, None)
    reference = survey.reference(*load_reference(), name=first, progress=_titled(progress, "Reference"))
    _free()
    candidate = survey.candidate(
        *load_candidate(), reference, name=second, progress=_titled(progress, "Candidate")
    )
    _free()
    return compared(survey, reference, candidate, thresholds)


def compared(
    survey: Survey, reference: Reading, candidate: Reading, thresholds: Thresholds | None = None
) -> result.AuditResult:
    """The audit of two models that were asked in the same survey.

    Raises:
        ConfigError: A smallest refusal rate is asked for, and there is no harmful prompt.
        NonFiniteError: The divergence is infinite.
    """
    before, after = reference.confidence, candidate.confidence
    pairs = None if before is None or after is None else list(zip(before, after, strict=True))
    places = {kind: survey.places(kind) for kind in KINDS}
    refused = (reference.answers.refused, candidate.answers.refused)
    found = {kind: compare(survey.prompts, kept, *refused, pairs) for kind, kept in places.items() if kept}
    tokens = reference.tokens
    source = "chosen from the reference's answers" if survey.safety_tokens is None else "given"
    models = (reference.model, candidate.model)
    return result.AuditResult(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(reference.seconds + candidate.seconds, 1),
        reference=reference.model,
        candidate=candidate.model,
        settings=result.Settings(
            prompts=survey.asked.source,
            prompts_digest=survey.asked.digest,
            limit=survey.limit,
            max_new_tokens=survey.max_new_tokens,
            batch_size=survey.batch_size,
            judge=JUDGE,
            versions=dict(versions("pact-plugin", "torch", "transformers")),
        ),
        safety_tokens=None
        if tokens is None
        else result.Tokens(digest=tokens.digest, tokens=list(tokens.tokens), source=source),
        harmful=found.get("harmful"),
        benign=found.get("benign"),
        verdict=judge(found, thresholds or Thresholds()),
        notes=[*reference.notes, *remarks(models, {kind: len(kept) for kind, kept in places.items()})],
        prompts=changed_most(survey.prompts, reference.answers, candidate.answers, pairs),
    )


def _titled(progress: Progress | None, title: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, description: progress(done, total, f"{title}: {description}")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
