"""The outcome of an audit, as data: what `audit.json` holds. Its JSON schema is `docs/audit.schema.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pact_plugin.audit.measures import (
    Agreement,
    Coherence,
    Everyday,
    JudgedAnswer,
    Likelihood,
    Noise,
    Part,
)
from pact_plugin.data.prompts import Kind


class Rate(Part):
    """How many of the prompts of one kind a model refuses."""

    refused: int = Field(description="Prompts refused, in full or in part.")
    n: int = Field(description="Prompts asked.")
    rate: float = Field(description="refused / n.")
    low: float = Field(
        description="Lower end of the 95% Wilson interval; n is the number of requests where these share prompts."
    )
    high: float = Field(description="Upper end of the 95% Wilson interval.")
    partial: int = Field(description="Of those refused, prompts refused in part.")
    neither: int = Field(description="Prompts whose answer says nothing: empty, or word salad.")
    unread: int = Field(
        description="Prompts on which a guard's verdict cannot be read; they count as not refused."
    )
    turned: int = Field(
        description="Prompts whose answer refuses in its first 24 words and complies as a whole."
    )


class Change(Part):
    """Candidate minus reference, over the same prompts."""

    difference: float = Field(description="Refusal rate of the candidate minus that of the reference.")
    low: float = Field(
        description="Lower end of the 95% interval: Tango's score interval for paired proportions; where prompts share "
        "requests, a bootstrap over requests, if that is wider."
    )
    high: float = Field(description="Upper end of that interval.")
    requests: int | None = Field(description="Requests that the prompts ask; None if each prompt is its own.")
    resolvable: float = Field(
        description="Smallest change that could be told from none at 95%, as a share of prompts (or of requests, where "
        "prompts share them), if as many change the other way as here."
    )
    refused_to_answered: int = Field(
        description="Prompts that the reference refuses and the candidate does not."
    )
    answered_to_refused: int = Field(
        description="Prompts that the candidate refuses and the reference does not."
    )
    p_value: float = Field(
        description="Exact two-sided p-value of McNemar's test; over requests, where prompts share them."
    )


class Category(Part):
    """The same counts for one category of prompts."""

    name: str
    n: int
    reference_refused: int
    candidate_refused: int


class Curve(Part):
    """A mean over answers at each position in the answer, from its first token."""

    mean: list[float]
    low: list[float] = Field(
        description="Mean - 1.96 standard errors, no lower than 0; the mean where n = 1."
    )
    high: list[float] = Field(description="Mean + 1.96 standard errors.")
    n: list[int] = Field(description="Answers that have a token at this position.")


class Confidence(Part):
    """The safety tokens along the reference's own answers."""

    answers: int = Field(description="Answers of at least one token.")
    tokens: int = Field(description="Tokens of these answers.")
    mean_divergence: float = Field(description="Mean over the tokens, in nats (spec/PACT.md, C2).")
    divergence: Curve = Field(description="Divergence of the candidate from the reference, in nats.")
    mass_reference: Curve = Field(
        description="Probability of the safety tokens together under the reference."
    )
    mass_candidate: Curve = Field(description="The same under the candidate.")


class Comparison(Part):
    """Both models on the prompts of one kind."""

    reference: Rate
    candidate: Rate
    change: Change
    categories: list[Category]
    confidence: Confidence | None = Field(description="None if no safety tokens were at hand.")
    noise: Noise | None = Field(description="None if the reference answered once.")
    coherence: Coherence | None = Field(description="None if the candidate's answers were not read.")


class Prompt(Part):
    """One prompt and what became of it."""

    prompt: str
    kind: Kind
    category: str | None
    request: str | None = Field(description="What is asked, where several prompts ask for one thing.")
    reference: JudgedAnswer
    candidate: JudgedAnswer
    flips: int | None = Field(
        description="Rounds of the noise floor in which the reference's verdict was another."
    )
    divergence: float | None = Field(description="Summed over the reference's answer, in nats.")


class Criterion(Part):
    """One threshold, and whether the candidate keeps to it."""

    name: Literal["loss_of_refusals", "rise_of_over_refusals", "refusal_rate"]
    measured: float = Field(description="The point estimate.")
    worst: float = Field(description="The unfavourable end of its 95% interval.")
    bound: float = Field(description="The largest (refusal_rate: the smallest) value allowed.")
    n: int
    passed: bool
    certain: bool = Field(
        description="Whether the worst value leads to the same answer, and so does every change up to the noise floor."
    )
    noise: float | None = Field(
        description="The noise floor of these prompts, as a share; None if not measured."
    )
    within_noise: bool = Field(
        description="Whether there is a change, no larger than the noise floor: it does not fail a run."
    )


class AuditVerdict(Part):
    """Whether the candidate keeps to every threshold."""

    passed: bool
    strict: bool = Field(description="Whether the worst value decides, in place of the point estimate.")
    criteria: list[Criterion]


class Model(Part):
    """Which model was asked, and how."""

    name: str
    revision: str | None = Field(description="Commit of a model from the hub.")
    parameters: int
    dtype: str
    device: str
    tokenizer: str = Field(description="SHA-256 of the tokenizer's trained vocabulary (spec/PACT.md, C9.3).")
    chat_template: str | None = Field(
        description="SHA-256 of the chat template; None: prompts went in as plain text."
    )
    empty_answers: int


class Tokens(Part):
    """The safety tokens that confidence was measured on."""

    digest: str
    tokens: list[str]
    source: str


class Settings(Part):
    """What the numbers depend on. Decoding is greedy; what is drawn is drawn from fixed seeds."""

    prompts: str = Field(description="Where the prompts came from.")
    prompts_digest: str = Field(description="SHA-256 of the prompts, 16 digits.")
    limit: int | None
    max_new_tokens: int
    batch_size: int
    judges: list[str] = Field(description="The first decides.")
    noise_floor: int = Field(description="Rounds in which the reference answered once more.")
    versions: dict[str, str]


class AuditResult(Part):
    """A whole audit."""

    format: Literal["pact-audit"] = "pact-audit"
    version: Literal[1] = 1
    created: str = Field(description="UTC, ISO 8601.")
    seconds: float = Field(description="Of asking both models and reading with them, without loading them.")
    reference: Model
    candidate: Model
    settings: Settings
    safety_tokens: Tokens | None
    harmful: Comparison | None = Field(description="None if there was no harmful prompt.")
    benign: Comparison | None = Field(description="None if there was no benign prompt.")
    verdict: AuditVerdict
    agreement: Agreement | None = Field(description="None if there is one judge.")
    task: Likelihood | None = Field(description="None if no held-out file was given.")
    everyday: Everyday | None = Field(description="None if everyday questions were not asked.")
    notes: list[str] = Field(description="What a reader should know.")
    prompts: list[Prompt] = Field(description="Every prompt, those whose behaviour changed most first.")

    def comparisons(self) -> dict[Kind, Comparison]:
        """The comparisons that were made."""
        both: dict[Kind, Comparison | None] = {"harmful": self.harmful, "benign": self.benign}
        return {kind: one for kind, one in both.items() if one is not None}
