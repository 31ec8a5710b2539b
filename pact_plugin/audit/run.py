"""The audit from beginning to end: the reference, then the candidate, never both in memory unless they share it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from pact_plugin.audit import result
from pact_plugin.audit.compare import changed_most, compare
from pact_plugin.audit.describe import describe, remarks, require_same_vocabulary, versions
from pact_plugin.audit.prompts import KINDS, AuditPrompt, PromptSet, of_kind
from pact_plugin.audit.reading import Answers, Confidence, ask, read
from pact_plugin.audit.verdict import Thresholds, judge, require_harmful
from pact_plugin.errors import ConfigError
from pact_plugin.generate import Progress, inspecting
from pact_plugin.select import MINIMUM_ANSWERS, choose_from_answers
from pact_plugin.tokens import SafetyTokens

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
    reference is let go before the candidate is loaded.

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
    began, thresholds = time.perf_counter(), thresholds or Thresholds()
    for key, value in (("--max-new-tokens", max_new_tokens), ("--batch-size", batch_size)):
        if value < 1:
            raise ConfigError("out of range", key=key, value=value, remedy="It must be at least 1.")
    limited = prompts.limited(limit)
    if thresholds.fail_under_refusal is not None and not of_kind(limited.prompts, "harmful"):
        require_harmful()
    run = _Run(limited.prompts, max_new_tokens, batch_size, progress)
    notes = [f"{prompts.repeated} repeated prompts were left out."] if prompts.repeated else []

    model, tokenizer = load_reference()
    if safety_tokens is not None:
        safety_tokens.check(tokenizer)
    with inspecting(model):
        reference = run.ask(model, tokenizer, "Reference")
        chosen = safety_tokens or run.choose(model, tokenizer, reference, notes)
        tokens = None if chosen is None else chosen.positive
        before = run.read(model, reference, reference, tokens, "Reference")
        infos = [describe(model, tokenizer, reference, names and names[0])]
    del model
    _free()

    first = tokenizer
    model, tokenizer = load_candidate()
    require_same_vocabulary(first, tokenizer)
    with inspecting(model):
        candidate = run.ask(model, tokenizer, "Candidate")
        after = run.read(model, candidate, reference, tokens, "Candidate")
        infos.append(describe(model, tokenizer, candidate, names and names[1]))
    del model
    _free()

    pairs = None if before is None or after is None else list(zip(before, after, strict=True))
    places = {kind: of_kind(limited.prompts, kind) for kind in KINDS}
    compared = {
        kind: compare(limited.prompts, kept, reference.refused, candidate.refused, pairs)
        for kind, kept in places.items()
        if kept
    }
    notes += remarks(infos, {kind: len(kept) for kind, kept in places.items()})
    return result.AuditResult(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - began, 1),
        reference=infos[0],
        candidate=infos[1],
        settings=result.Settings(
            prompts=prompts.source,
            prompts_digest=limited.digest,
            limit=limit,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            judge=JUDGE,
            versions=dict(versions("pact-plugin", "torch", "transformers")),
        ),
        safety_tokens=None
        if tokens is None
        else result.Tokens(
            digest=tokens.digest,
            tokens=list(tokens.tokens),
            source="chosen from the reference's answers" if safety_tokens is None else "given",
        ),
        harmful=compared.get("harmful"),
        benign=compared.get("benign"),
        verdict=judge(compared, thresholds),
        notes=notes,
        prompts=changed_most(limited.prompts, reference, candidate, pairs),
    )


class _Run:
    """The prompts and how they are asked; one bar of progress for each step."""

    def __init__(
        self, prompts: Sequence[AuditPrompt], max_new_tokens: int, batch_size: int, progress: Progress | None
    ) -> None:
        self.prompts, self.max_new_tokens, self.batch_size = prompts, max_new_tokens, batch_size
        self.progress = progress or (lambda done, total, description: None)

    def ask(self, model: Any, tokenizer: Any, name: str) -> Answers:
        return ask(
            model,
            tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            report=self._reporter(f"{name}: answering"),
        )

    def read(
        self, model: Any, own: Answers, reference: Answers, tokens: SafetyTokens | None, name: str
    ) -> list[Confidence] | None:
        """Confidence along the reference's answers, each after the prompt in the model's own format."""
        if tokens is None:
            return None
        pairs = list(zip(own.questions, reference.tokens, strict=True))
        report = self._reporter(f"{name}: reading the reference's answers")
        return read(model, pairs, tokens.ids, batch_size=self.batch_size, report=report)

    def choose(self, model: Any, tokenizer: Any, said: Answers, notes: list[str]) -> SafetyTokens | None:
        """Safety tokens from the reference's answers; None, with a note, if there are too few."""

        def taken(kind: str, refused: bool) -> dict[str, tuple[list[int], list[int]]]:
            return {
                one.prompt: (said.questions[i], said.tokens[i])
                for i, one in enumerate(self.prompts)
                if one.kind == kind and said.refused[i] == refused and said.tokens[i]
            }

        refusals, helpful = taken("harmful", True), taken("benign", False)
        if min(len(refusals), len(helpful)) < MINIMUM_ANSWERS:
            notes.append(
                f"Divergence was not measured: choosing safety tokens takes {MINIMUM_ANSWERS} refusals and "
                f"{MINIMUM_ANSWERS} helpful answers of the reference, and there are {len(refusals)} and "
                f"{len(helpful)}. Give --safety-tokens, or more prompts."
            )
            return None
        return choose_from_answers(
            model, tokenizer, refusals, helpful, batch_size=self.batch_size, progress=self._choosing
        )

    def _choosing(self, done: int, total: int, description: str) -> None:
        self.progress(done, total, f"Reference: {description.lower()}")

    def _reporter(self, description: str) -> Callable[[int], None]:
        return lambda done: self.progress(done, len(self.prompts), description)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
