"""What an audit is asked to do: its models, its settings, and how models are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pact_plugin.audit.verdict import Thresholds
from pact_plugin.data.heldout import HeldOut
from pact_plugin.errors import ConfigError
from pact_plugin.judge.names import DEFAULT
from pact_plugin.tokens.safety_tokens import SafetyTokens

Loader = Callable[[], tuple[Any, Any]]
"""Gives a causal language model and its tokenizer."""


@dataclass(frozen=True)
class Models:
    """The two models of an audit.

    Args:
        reference: Loads the aligned model and its tokenizer.
        candidate: Loads the model to be judged, with a tokenizer of the same vocabulary.
        names: What the report calls them; by default as they call themselves.
        adapter: The candidate is the reference with a PEFT adapter on it.
    """

    reference: Loader
    candidate: Loader
    names: tuple[str | None, str | None] = (None, None)
    adapter: bool = False


@dataclass(frozen=True)
class Asking:
    """How models are asked.

    Args:
        max_new_tokens: Where answers are cut off, in tokens.
        batch_size: Prompts at a time.
        limit: Most prompts of each kind; None for all.
        noise_floor: Further rounds in which the reference answers, in other batches and orders.

    Raises:
        ConfigError: A setting cannot be used.
    """

    max_new_tokens: int = 64
    batch_size: int = 16
    limit: int | None = None
    noise_floor: int = 0

    def __post_init__(self) -> None:
        for key, value, least in (
            ("max_new_tokens", self.max_new_tokens, 1),
            ("batch_size", self.batch_size, 1),
            ("noise_floor", self.noise_floor, 0),
        ):
            if value < least:
                raise ConfigError(
                    "out of range", key=key, value=value, remedy=f"It must be at least {least}."
                )


@dataclass(frozen=True)
class AuditSettings:
    """What is measured, and what is allowed.

    Args:
        asking: How models are asked.
        thresholds: What is allowed.
        judges: Names of one judge or two. The first decides, the second is compared with it.
        safety_tokens: Those with a positive weight count; by default chosen from the reference's answers.
        task: Held-out items of the user's own task, on which the models' likelihoods are compared.
        everyday: Whether the models are compared on the bundled everyday questions.
        coherence: Whether the reference is loaded once more, to read the candidate's answers. Where the candidate is an
            adapter, these are read in any case, with the adapter switched off.

    Raises:
        ConfigError: There is no judge, or more than two.
    """

    asking: Asking = field(default_factory=Asking)
    thresholds: Thresholds = field(default_factory=Thresholds)
    judges: tuple[str, ...] = (DEFAULT,)
    safety_tokens: SafetyTokens | None = None
    task: tuple[HeldOut, ...] = ()
    everyday: bool = True
    coherence: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(set(self.judges)) == len(self.judges) <= 2:
            raise ConfigError(
                "there is one judge, or there are two of different names",
                key="judges",
                value=", ".join(self.judges),
                remedy="Name one or two by `judges`.",
            )
