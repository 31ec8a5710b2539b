"""What an audit measures beside refusals, as data: noise, coherence, capability, and how far judges agree."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pact_plugin.judge.verdicts import Verdict, refuses, whole


class Part(BaseModel):
    """A part of `audit.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Noise(Part):
    """How many verdicts on the reference change by themselves when it answers again."""

    flips: list[int] = Field(
        description="Of each round: prompts refused in it and not in the audit, or the other way round."
    )
    mean: float = Field(description="Mean of `flips`.")
    maximum: int = Field(description="Largest of `flips`.")
    floor: float = Field(description="maximum / n: no change up to this size is told from noise.")


class Coherence(Part):
    """Mean log-likelihood of answers under the reference, in nats per token."""

    reference: float = Field(description="Mean over the reference's own answers.")
    candidate: float = Field(description="Mean over the candidate's answers.")
    low: float = Field(description="Lower end of the 95% bootstrap interval of the candidate's mean.")
    high: float = Field(description="Upper end of that interval.")
    answers: int = Field(description="The candidate's answers of at least one token.")
    unlikely: int = Field(description="Of these, answers below `bound`.")
    reference_unlikely: int = Field(description="The reference's own answers below `bound`.")
    bound: float = Field(description="Nats per token; word salad is below it.")


class Likelihood(Part):
    """Mean log-likelihood of the held-out answers of the user's task, in nats per token."""

    items: int
    tokens: int = Field(description="Tokens of the answers.")
    reference: float
    candidate: float
    difference: float = Field(description="Candidate minus reference.")
    low: float = Field(description="Lower end of its 95% interval: a paired bootstrap over items.")
    high: float = Field(description="Upper end of that interval.")


class Everyday(Part):
    """Divergence on bundled everyday questions, along the reference's own answers."""

    questions: int = Field(description="Questions that the reference gave an answer to.")
    tokens: int = Field(description="Tokens of these answers.")
    kl: float = Field(
        description="Mean over tokens of KL(reference, candidate) over the vocabulary, in nats."
    )
    low: float = Field(description="Lower end of its 95% interval: a bootstrap over questions.")
    high: float = Field(description="Upper end of that interval.")


class Agreement(Part):
    """How far the second judge agrees with the first, over the answers of both models that both can judge."""

    second: str = Field(description="Name of the second judge.")
    compared: int = Field(description="Answers that both judges gave a verdict on.")
    unread: int = Field(description="Answers without a verdict from one of them.")
    equal: float = Field(
        description="Share of `compared` with one verdict from both; partial refusals are refusals."
    )
    kappa: float | None = Field(
        description="Cohen's kappa; None where both gave only one and the same verdict."
    )
    differ: int = Field(description="Answers on which they disagree; each is marked in `prompts`.")


class JudgedAnswer(Part):
    """What one model said to a prompt, and what judges say of it."""

    answer: str
    refused: bool = Field(description="Whether it counts as a refusal: its verdict is refused or partial.")
    verdict: Verdict | None = Field(
        description="By the first judge; by the default one if the first tells harm and the prompt is benign. "
        "None if what a guard wrote cannot be read, which counts as not refused."
    )
    score: float | None = Field(description="How much it refuses, from 0 to 1, where the judge has a score.")
    beginning: Verdict | None = Field(description="The verdict on its first 24 words alone.")
    second: Verdict | None = Field(
        description="By the second judge, if there is one; None on benign prompts where one of the two tells harm."
    )
    written: str | None = Field(description="What a guard model wrote, where it cannot be read.")
    likelihood: float | None = Field(
        description="Mean log-likelihood under the reference, in nats per token; None if not measured, or empty."
    )

    @property
    def turned(self) -> bool:
        """Whether it refuses at first and then complies."""
        return refuses(self.beginning) and self.verdict == "complied"

    @property
    def disputed(self) -> bool:
        """Whether both judges gave it a verdict, and these differ; a partial refusal is a refusal."""
        return None not in (self.verdict, self.second) and whole(self.verdict) != whole(self.second)

    @classmethod
    def of(cls, verdict: Verdict | None, answer: str = "", **more: Any) -> JudgedAnswer:
        """An answer with this verdict, and with whatever other fields are known."""
        unknown = dict.fromkeys(("score", "beginning", "second", "written", "likelihood"))
        return cls(answer=answer, refused=refuses(verdict), verdict=verdict, **(unknown | more))
