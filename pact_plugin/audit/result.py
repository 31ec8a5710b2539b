"""The outcome of an audit, as data: what `audit.json` holds. Its JSON schema is `docs/audit.schema.json`."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pact_plugin.data.prompts import Kind


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Part):
    """How many of the prompts of one kind a model refuses."""

    refused: int = Field(description="Prompts refused, by the keyword judge.")
    n: int = Field(description="Prompts asked.")
    rate: float = Field(description="refused / n.")
    low: float = Field(description="Lower end of the 95% Wilson interval.")
    high: float = Field(description="Upper end of the 95% Wilson interval.")


class Change(_Part):
    """Candidate minus reference, over the same prompts."""

    difference: float = Field(description="Refusal rate of the candidate minus that of the reference.")
    low: float = Field(description="Lower end of Tango's 95% score interval for paired proportions.")
    high: float = Field(description="Upper end of that interval.")
    refused_to_answered: int = Field(
        description="Prompts that the reference refuses and the candidate does not."
    )
    answered_to_refused: int = Field(
        description="Prompts that the candidate refuses and the reference does not."
    )
    p_value: float = Field(description="Exact two-sided p-value of McNemar's test.")


class Category(_Part):
    """The same counts for one category of prompts."""

    name: str
    n: int
    reference_refused: int
    candidate_refused: int


class Curve(_Part):
    """A mean over answers at each position in the answer, from its first token."""

    mean: list[float]
    low: list[float] = Field(
        description="Mean - 1.96 standard errors, no lower than 0; the mean where n = 1."
    )
    high: list[float] = Field(description="Mean + 1.96 standard errors.")
    n: list[int] = Field(description="Answers that have a token at this position.")


class Confidence(_Part):
    """The safety tokens along the reference's own answers."""

    answers: int = Field(description="Answers of at least one token.")
    tokens: int = Field(description="Tokens of these answers.")
    mean_divergence: float = Field(description="Mean over the tokens, in nats (spec/PACT.md, C2).")
    divergence: Curve = Field(description="Divergence of the candidate from the reference, in nats.")
    mass_reference: Curve = Field(
        description="Probability of the safety tokens together under the reference."
    )
    mass_candidate: Curve = Field(description="The same under the candidate.")


class Comparison(_Part):
    """Both models on the prompts of one kind."""

    reference: Rate
    candidate: Rate
    change: Change
    categories: list[Category]
    confidence: Confidence | None = Field(description="None if no safety tokens were at hand.")


class Prompt(_Part):
    """One prompt and what became of it."""

    prompt: str
    kind: Kind
    category: str | None
    reference_answer: str
    candidate_answer: str
    reference_refused: bool
    candidate_refused: bool
    divergence: float | None = Field(description="Summed over the reference's answer, in nats.")


class Criterion(_Part):
    """One threshold, and whether the candidate keeps to it."""

    name: Literal["loss_of_refusals", "rise_of_over_refusals", "refusal_rate"]
    measured: float = Field(description="The point estimate.")
    worst: float = Field(description="The unfavourable end of its 95% interval.")
    bound: float = Field(description="The largest (refusal_rate: the smallest) value allowed.")
    n: int
    passed: bool
    certain: bool = Field(description="Whether the worst value leads to the same answer.")


class Verdict(_Part):
    """Whether the candidate keeps to every threshold."""

    passed: bool
    strict: bool = Field(description="Whether the worst value decides, in place of the point estimate.")
    criteria: list[Criterion]


class Model(_Part):
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


class Tokens(_Part):
    """The safety tokens that confidence was measured on."""

    digest: str
    tokens: list[str]
    source: str


class Settings(_Part):
    """What the numbers depend on. Nothing is random: decoding is greedy."""

    prompts: str = Field(description="Where the prompts came from.")
    prompts_digest: str = Field(description="SHA-256 of the prompts, 16 digits.")
    limit: int | None
    max_new_tokens: int
    batch_size: int
    judge: str
    versions: dict[str, str]


class AuditResult(_Part):
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
    verdict: Verdict
    notes: list[str] = Field(description="What a reader should know.")
    prompts: list[Prompt] = Field(description="Every prompt, those whose behaviour changed most first.")

    def comparisons(self) -> dict[Kind, Comparison]:
        """The comparisons that were made."""
        both: dict[Kind, Comparison | None] = {"harmful": self.harmful, "benign": self.benign}
        return {kind: one for kind, one in both.items() if one is not None}


def json_schema() -> str:
    """The JSON schema of `audit.json`."""
    return json.dumps(AuditResult.model_json_schema(mode="serialization"), indent=2) + "\n"
