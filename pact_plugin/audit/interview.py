"""One model at a time: everything that an audit has it say and read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pact_plugin.audit import everyday, task
from pact_plugin.audit.judging import Judges
from pact_plugin.audit.noise import Round, again
from pact_plugin.audit.reading import Answers, Confidence, ask, likelihoods, read
from pact_plugin.audit.settings import Asking
from pact_plugin.data.generation import Pair, Progress, user_prompts
from pact_plugin.data.heldout import HeldOut
from pact_plugin.data.prompts import Kind, Prompt, of_kind
from pact_plugin.judge.names import DEFAULT
from pact_plugin.tokens.checks import MINIMUM_ANSWERS
from pact_plugin.tokens.safety_tokens import SafetyTokens
from pact_plugin.tokens.select import Selection, choose_from_answers


@dataclass(frozen=True)
class Asked:
    """What models are asked, and how.

    Args:
        prompts: The prompts.
        asking: How they are asked.
        task: Held-out items whose answers are read.
        everyday: Whether the bundled everyday questions are asked too.
    """

    prompts: tuple[Prompt, ...]
    asking: Asking
    task: Sequence[HeldOut] = ()
    everyday: bool = False

    @property
    def texts(self) -> list[str]:
        """The prompts alone."""
        return [one.prompt for one in self.prompts]

    def places(self, kind: Kind) -> list[int]:
        """Where the prompts of a kind stand."""
        return of_kind(self.prompts, kind)


@dataclass
class Interview:
    """One model, and what it is asked.

    Args:
        asked: What is asked, and how.
        model: A causal language model.
        tokenizer: Its tokenizer; not needed where only given answers are read.
        progress: Called with (done, total, description).
    """

    asked: Asked
    model: Any
    tokenizer: Any
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._began = time.perf_counter()
        self._batch = self.asked.asking.batch_size

    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._began

    def answers(self) -> Answers:
        """To the prompts."""
        return self._ask(self.asked.texts, "answering")

    def rounds(self, said: Answers) -> tuple[Round, ...]:
        """What it says when it is asked again."""
        asking = self.asked.asking
        total = len(self.asked.texts) * asking.noise_floor
        return again(self.model, self.tokenizer, said, asking, self._report(total, "answering again"))

    def confidence(self, pairs: Sequence[Pair], tokens: SafetyTokens | None) -> list[Confidence] | None:
        """Along the reference's answers, each after the prompt in the model's own format."""
        if tokens is None:
            return None
        report = self._report(len(pairs), "reading the reference's answers")
        return read(self.model, pairs, tokens.ids, batch_size=self._batch, report=report)

    def choose(self, said: Answers, notes: list[str]) -> SafetyTokens | None:
        """Safety tokens from the reference's answers; None, with a note, if there are too few."""
        texts = self.asked.texts
        refused = Judges((DEFAULT,)).refused(texts, said.texts)

        def taken(kind: Kind, wanted: bool) -> dict[str, Pair]:
            return {
                texts[i]: (said.questions[i], said.tokens[i])
                for i in self.asked.places(kind)
                if refused[i] == wanted and said.tokens[i]
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
            self.model,
            self.tokenizer,
            refusals,
            helpful,
            Selection(batch_size=self._batch),
            progress=_lowered(self.progress),
        )

    def check_task(self) -> None:
        """Refuse an item that is too long, before the long part."""
        task.pairs(self.model, self.tokenizer, self.asked.task)

    def task(self) -> list[Tensor]:
        """Log-probabilities of the tokens of each held-out answer."""
        if not self.asked.task:
            return []
        pairs = task.pairs(self.model, self.tokenizer, self.asked.task)
        report = self._report(len(pairs), "reading the held-out task")
        return likelihoods(self.model, pairs, batch_size=self._batch, report=report)

    def kept(self) -> everyday.Kept | None:
        """What is kept of the reference on everyday questions, if they are asked."""
        if not self.asked.everyday:
            return None
        said = self._ask(everyday.questions(), "answering everyday questions")
        report = self._report(len(said.texts), "reading its everyday answers")
        return everyday.keep(self.model, said, batch_size=self._batch, report=report)

    def divergence(self, kept: Any) -> list[float] | None:
        """From the reference on everyday questions, if they were asked."""
        if not isinstance(kept, everyday.Kept):
            return None
        asked = user_prompts(self.tokenizer, everyday.questions())
        report = self._report(len(asked), "reading the reference's everyday answers")
        return everyday.divergence(self.model, asked, kept, batch_size=self._batch, report=report)

    def means(self, pairs: Sequence[Pair]) -> list[float | None]:
        """Mean log-likelihood of each answer, in nats per token; None where it is empty."""
        report = self._report(len(pairs), "reading answers for coherence")
        found = likelihoods(self.model, pairs, batch_size=self._batch, report=report)
        return [float(one.double().mean()) if len(one) else None for one in found]

    def _ask(self, prompts: Sequence[str], description: str) -> Answers:
        return ask(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.asked.asking.max_new_tokens,
            batch_size=self._batch,
            report=self._report(len(prompts), description),
        )

    def _report(self, total: int, description: str) -> Callable[[int], None]:
        return lambda done: self.progress(done, total, description) if self.progress else None


def _lowered(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, description: progress(done, total, description.lower())
