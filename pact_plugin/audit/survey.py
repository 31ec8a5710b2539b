"""Models before the same prompts: each is asked once, and can then be compared with any number of others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pact_plugin.audit import result
from pact_plugin.audit.choosing import choose
from pact_plugin.audit.describe import describe, require_same_vocabulary
from pact_plugin.audit.everyday import Kept, divergence, keep, questions
from pact_plugin.audit.noise import again
from pact_plugin.audit.reading import AnswerConfidence, Answers, ask, check_context, likelihoods, read
from pact_plugin.audit.settings import Asking
from pact_plugin.audit.task import pairs
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import Done, Pair, Progress, inspecting, reporting
from pact_plugin.data.heldout import HeldOut
from pact_plugin.data.prompts import Kind, PromptSet, of_kind
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint

Reporter = Callable[[int, str], Done]
"""(total, description) -> what reports progress."""


@dataclass(frozen=True)
class ReferenceReading:
    """What the reference said, and what candidates are compared with; of the model it holds the head alone."""

    model: result.Model
    answers: Answers
    tokens: SafetyTokens | None
    """Those that confidence is measured on; None if too few answers were at hand to choose them."""
    confidence: list[AnswerConfidence] | None
    """Along its own answer to every prompt."""
    task: list[Tensor]
    """Log-probabilities of the tokens of each held-out answer."""
    everyday: Kept | None
    """What divergence on everyday questions is measured from; None if they were not asked."""
    rounds: tuple[list[str], ...]
    """What it said when it was asked again."""
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class CandidateReading:
    """What a candidate said, and what it thinks of the reference's answers; it holds no model."""

    model: result.Model
    answers: Answers
    confidence: list[AnswerConfidence] | None
    """Along the reference's answer to every prompt."""
    task: list[Tensor]
    """Log-probabilities of the tokens of each held-out answer."""
    everyday: list[float] | None
    """KL from the reference at each everyday question, in nats; None if they were not asked."""
    seconds: float


class Survey:
    """The prompts, and how models are asked: first the reference, then candidates.

    Args:
        prompts: What the models are asked.
        asking: How they are asked.
        safety_tokens: Those with a positive weight count; by default chosen from the reference's answers.
        task: Held-out items whose answers are read.
        everyday: Whether the bundled everyday questions are asked too.

    Raises:
        ConfigError: The limit is below 1.
    """

    def __init__(
        self,
        prompts: PromptSet,
        asking: Asking | None = None,
        *,
        safety_tokens: SafetyTokens | None = None,
        task: Sequence[HeldOut] = (),
        everyday: bool = False,
    ) -> None:
        self.asking = asking or Asking()
        self.prompts = prompts.limited(self.asking.limit)
        self.texts = [one.prompt for one in self.prompts.prompts]
        self.safety_tokens, self.task, self.everyday = safety_tokens, task, everyday

    def places(self, kind: Kind) -> list[int]:
        """Where the prompts of a kind stand."""
        return of_kind(self.prompts.prompts, kind)

    def reference(
        self, model: Any, tokenizer: Any, *, name: str | None = None, progress: Progress | None = None
    ) -> ReferenceReading:
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
        began, report, notes = time.perf_counter(), partial(reporting, progress), list[str]()
        if self.prompts.repeated:
            notes.append(f"{self.prompts.repeated} repeated prompts were left out.")
        if self.safety_tokens is not None:
            self.safety_tokens.check(tokenizer)
        with inspecting(model):
            items = pairs(model, tokenizer, self.task)  # one that is too long is refused before the long part
            everyday = questions() if self.everyday else ()
            for one, ids in zip(everyday, user_prompts(tokenizer, everyday), strict=True):
                check_context(model, len(ids), self.asking.max_new_tokens, ("everyday", one))
            said = self._ask(model, tokenizer, self.texts, report, "answering")
            chosen = self.safety_tokens
            if chosen is None:
                size = self.asking.batch_size
                chosen, more = choose(model, tokenizer, self.prompts.prompts, said, size, progress)
                notes += more
            tokens = None if chosen is None else chosen.positive
            answering = report(len(self.texts) * self.asking.noise_floor, "answering again")
            return ReferenceReading(
                model=describe(model, tokenizer, said, name),
                answers=said,
                tokens=tokens,
                confidence=self._confidence(model, said.pairs(), tokens, report),
                task=self._likelihoods(model, items, report, "reading the held-out task"),
                everyday=self._keep(model, tokenizer, report),
                rounds=again(model, tokenizer, said, self.asking, answering),
                notes=tuple(notes),
                seconds=time.perf_counter() - began,
            )

    def candidate(
        self,
        model: Any,
        tokenizer: Any,
        reference: ReferenceReading,
        *,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> CandidateReading:
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
        require_same_vocabulary(reference.model.tokenizer, tokenizer_fingerprint(tokenizer))
        began, report = time.perf_counter(), partial(reporting, progress)
        with inspecting(model):
            items = pairs(model, tokenizer, self.task)
            said = self._ask(model, tokenizer, self.texts, report, "answering")
            given = said.pairs(reference.answers.tokens)
            return CandidateReading(
                model=describe(model, tokenizer, said, name),
                answers=said,
                confidence=self._confidence(model, given, reference.tokens, report),
                task=self._likelihoods(model, items, report, "reading the held-out task"),
                everyday=self._divergence(model, tokenizer, reference.everyday, report),
                seconds=time.perf_counter() - began,
            )

    def coherence(
        self,
        model: Any,
        reference: ReferenceReading,
        candidate: CandidateReading,
        progress: Progress | None = None,
    ) -> tuple[list[float | None], list[float | None]]:
        """How likely the reference finds its own answers, and the candidate's.

        Args:
            model: The reference.
            reference: What it said.
            candidate: What the candidate said.
            progress: As for `reference`.

        Returns:
            The mean log-likelihood of each answer, in nats per token; None where an answer is empty.
        """
        own, report, title = reference.answers, partial(reporting, progress), "reading answers for coherence"
        with inspecting(model):
            theirs = self._likelihoods(model, own.pairs(candidate.answers.tokens), report, title)
            if reference.confidence is None:
                read_own = self._likelihoods(model, own.pairs(), report, title)
            else:
                read_own = [one.label for one in reference.confidence]
        first, second = (
            [float(one.double().mean()) if len(one) else None for one in side] for side in (read_own, theirs)
        )
        return first, second

    def _ask(
        self, model: Any, tokenizer: Any, prompts: Sequence[str], report: Reporter, description: str
    ) -> Answers:
        return ask(
            model,
            tokenizer,
            prompts,
            max_new_tokens=self.asking.max_new_tokens,
            batch_size=self.asking.batch_size,
            report=report(len(prompts), description),
        )

    def _confidence(
        self, model: Any, given: Sequence[Pair], tokens: SafetyTokens | None, report: Reporter
    ) -> list[AnswerConfidence] | None:
        if tokens is None:
            return None
        reading = report(len(given), "reading the reference's answers")
        return read(model, given, tokens.ids, batch_size=self.asking.batch_size, report=reading)

    def _likelihoods(
        self, model: Any, given: Sequence[Pair], report: Reporter, description: str
    ) -> list[Tensor]:
        if not given:
            return []
        reading = report(len(given), description)
        return likelihoods(model, given, batch_size=self.asking.batch_size, report=reading)

    def _keep(self, model: Any, tokenizer: Any, report: Reporter) -> Kept | None:
        if not self.everyday:
            return None
        said = self._ask(model, tokenizer, questions(), report, "answering everyday questions")
        reading = report(len(said.texts), "reading its everyday answers")
        return keep(model, said, batch_size=self.asking.batch_size, report=reading)

    def _divergence(
        self, model: Any, tokenizer: Any, kept: Kept | None, report: Reporter
    ) -> list[float] | None:
        if kept is None:
            return None
        asked = user_prompts(tokenizer, questions())
        reading = report(len(asked), "reading the reference's everyday answers")
        return divergence(model, asked, kept, batch_size=self.asking.batch_size, report=reading)
