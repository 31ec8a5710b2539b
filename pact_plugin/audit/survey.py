"""Models before the same prompts: each is asked once, and can then be compared with any number of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pact_plugin.audit import result
from pact_plugin.audit.describe import describe, require_same_vocabulary
from pact_plugin.audit.everyday import Kept
from pact_plugin.audit.interview import Asked, Interview
from pact_plugin.audit.noise import Round
from pact_plugin.audit.reading import Answers, Confidence
from pact_plugin.audit.settings import Asking
from pact_plugin.data.generation import Progress, inspecting
from pact_plugin.data.heldout import HeldOut
from pact_plugin.data.prompts import Kind, PromptSet
from pact_plugin.tokens.safety_tokens import SafetyTokens, tokenizer_fingerprint


@dataclass(frozen=True)
class Reading:
    """What one model said, and how likely it finds given answers; of the reference it holds the head, else no model."""

    model: result.Model
    answers: Answers
    tokens: SafetyTokens | None
    """Those that confidence was measured on; None if too few answers were at hand to choose them."""
    confidence: list[Confidence] | None
    """Along the reference's answer to every prompt."""
    task: list[Tensor]
    """Log-probabilities of the tokens of each held-out answer."""
    everyday: Kept | list[float] | None
    """Of the reference what is kept, of a candidate the divergence from it at each question."""
    rounds: tuple[Round, ...]
    """Of the reference: what it said when it was asked again."""
    notes: tuple[str, ...]
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
        asking = asking or Asking()
        self.prompts = prompts.limited(asking.limit)
        self.asked = Asked(self.prompts.prompts, asking, task, everyday)
        self.safety_tokens = safety_tokens

    def places(self, kind: Kind) -> list[int]:
        """Where the prompts of a kind stand."""
        return self.asked.places(kind)

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
        notes = list[str]()
        if self.prompts.repeated:
            notes.append(f"{self.prompts.repeated} repeated prompts were left out.")
        if self.safety_tokens is not None:
            self.safety_tokens.check(tokenizer)
        one = Interview(self.asked, model, tokenizer, progress)
        with inspecting(model):
            one.check_task()
            said = one.answers()
            chosen = self.safety_tokens or one.choose(said, notes)
            tokens = None if chosen is None else chosen.positive
            return Reading(
                model=describe(model, tokenizer, said, name),
                answers=said,
                tokens=tokens,
                confidence=one.confidence(said.pairs(), tokens),
                task=one.task(),
                everyday=one.kept(),
                rounds=one.rounds(said),
                notes=tuple(notes),
                seconds=one.seconds(),
            )

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
        require_same_vocabulary(reference.model.tokenizer, tokenizer_fingerprint(tokenizer))
        one = Interview(self.asked, model, tokenizer, progress)
        with inspecting(model):
            one.check_task()
            said = one.answers()
            return Reading(
                model=describe(model, tokenizer, said, name),
                answers=said,
                tokens=reference.tokens,
                confidence=one.confidence(said.pairs(reference.answers.tokens), reference.tokens),
                task=one.task(),
                everyday=one.divergence(reference.everyday),
                rounds=(),
                notes=(),
                seconds=one.seconds(),
            )

    def coherence(
        self, model: Any, reference: Reading, candidate: Reading, progress: Progress | None = None
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
        one = Interview(self.asked, model, None, progress)
        own = reference.answers
        with inspecting(model):
            theirs = one.means(own.pairs(candidate.answers.tokens))
            if reference.confidence is None:
                return one.means(own.pairs()), theirs
        read = [each.label.double() for each in reference.confidence]
        return [float(each.mean()) if len(each) else None for each in read], theirs
