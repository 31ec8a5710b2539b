"""Models before the same prompts: each is asked once, and can then be compared with any number of others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pact_plugin.audit import result
from pact_plugin.audit.describe import describe, require_same_vocabulary
from pact_plugin.audit.reading import Answers, Confidence, ask, read
from pact_plugin.data.generation import Progress, inspecting
from pact_plugin.data.prompts import Kind, PromptSet, of_kind
from pact_plugin.errors import ConfigError
from pact_plugin.tokens.checks import MINIMUM_ANSWERS
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint
from pact_plugin.tokens.select import Selection, choose_from_answers


@dataclass(frozen=True)
class Reading:
    """What one model said to every prompt, and how sure it is of the safety tokens; holds no model."""

    model: result.Model
    answers: Answers
    tokens: SafetyTokens | None
    """Those that confidence was measured on; None if too few answers were at hand to choose them."""
    confidence: list[Confidence] | None
    """Along the reference's answer to every prompt."""
    notes: tuple[str, ...]
    seconds: float


class Survey:
    """The prompts, and how models are asked: first the reference, then candidates.

    Args:
        prompts: What the models are asked.
        safety_tokens: Those with a positive weight count; by default chosen from the reference's answers.
        limit: At most so many prompts of each kind.
        max_new_tokens: Where answers are cut off, in tokens.
        batch_size: Prompts at a time.

    Raises:
        ConfigError: A setting cannot be used.
    """

    def __init__(
        self,
        prompts: PromptSet,
        *,
        safety_tokens: SafetyTokens | None = None,
        limit: int | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 16,
    ) -> None:
        for key, value in (("--max-new-tokens", max_new_tokens), ("--batch-size", batch_size)):
            if value < 1:
                raise ConfigError("out of range", key=key, value=value, remedy="It must be at least 1.")
        self.asked = prompts.limited(limit)
        self.prompts = self.asked.prompts
        self.safety_tokens, self.limit = safety_tokens, limit
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def places(self, kind: Kind) -> list[int]:
        """Where the prompts of a kind stand."""
        return of_kind(self.prompts, kind)

    def reference(
        self, model: Any, tokenizer: Any, *, name: str | None = None, progress: Progress | None = None
    ) -> Reading:
        """Let the aligned model answer, and read its own answers.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            name: What the report calls it; by default as it calls itself.
            progress: Called with (done, total, description) as prompts are done.

        Raises:
            ConfigError: A prompt is too long for the model.
            TokenizerMismatchError: The safety tokens belong to another vocabulary.
            ModelStructureError: The model's head is of a kind that is not known.
            NonFiniteError: The model's probabilities are NaN.
        """
        began, notes = time.perf_counter(), list[str]()
        if self.asked.repeated:
            notes.append(f"{self.asked.repeated} repeated prompts were left out.")
        if self.safety_tokens is not None:
            self.safety_tokens.check(tokenizer)
        with inspecting(model):
            said = self._ask(model, tokenizer, progress)
            chosen = self.safety_tokens or self._choose(model, tokenizer, said, notes, progress)
            tokens = None if chosen is None else chosen.positive
            confidence = self._read(model, said, said, tokens, progress)
            info = describe(model, tokenizer, said, name)
        return Reading(info, said, tokens, confidence, tuple(notes), time.perf_counter() - began)

    def candidate(
        self,
        model: Any,
        tokenizer: Any,
        reference: Reading,
        *,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> Reading:
        """Let a model answer that is to be judged, and read the reference's answers with it.

        Args:
            model: As for `reference`.
            tokenizer: One of the reference's vocabulary.
            reference: The reference's answers to the same survey.
            name: As for `reference`.
            progress: As for `reference`.

        Raises:
            TokenizerMismatchError: It has another vocabulary than the reference.
            ConfigError, ModelStructureError, NonFiniteError: As for `reference`.
        """
        began = time.perf_counter()
        require_same_vocabulary(reference.model.tokenizer, tokenizer_fingerprint(tokenizer))
        with inspecting(model):
            said = self._ask(model, tokenizer, progress)
            confidence = self._read(model, said, reference.answers, reference.tokens, progress)
            info = describe(model, tokenizer, said, name)
        return Reading(info, said, reference.tokens, confidence, (), time.perf_counter() - began)

    def _ask(self, model: Any, tokenizer: Any, progress: Progress | None) -> Answers:
        return ask(
            model,
            tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            report=self._reporter(progress, "answering"),
        )

    def _read(
        self,
        model: Any,
        own: Answers,
        reference: Answers,
        tokens: SafetyTokens | None,
        progress: Progress | None,
    ) -> list[Confidence] | None:
        """Confidence along the reference's answers, each after the prompt in the model's own format."""
        if tokens is None:
            return None
        pairs = list(zip(own.questions, reference.tokens, strict=True))
        report = self._reporter(progress, "reading the reference's answers")
        return read(model, pairs, tokens.ids, batch_size=self.batch_size, report=report)

    def _choose(
        self, model: Any, tokenizer: Any, said: Answers, notes: list[str], progress: Progress | None
    ) -> SafetyTokens | None:
        """Safety tokens from the reference's answers; None, with a note, if there are too few."""

        def taken(kind: Kind, refused: bool) -> dict[str, tuple[list[int], list[int]]]:
            return {
                self.prompts[i].prompt: (said.questions[i], said.tokens[i])
                for i in self.places(kind)
                if said.refused[i] == refused and said.tokens[i]
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
            model,
            tokenizer,
            refusals,
            helpful,
            Selection(batch_size=self.batch_size),
            progress=_lowered(progress),
        )

    def _reporter(self, progress: Progress | None, description: str) -> Callable[[int], None]:
        return lambda done: progress(done, len(self.prompts), description) if progress else None


def _lowered(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, description: progress(done, total, description.lower())
