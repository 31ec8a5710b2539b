"""PactConfig: every setting of the constraint, validated, with the same keys in every pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from pact_plugin.errors import ConfigError
from pact_plugin.judge.text import JUDGED_TOKENS
from pact_plugin.settings import Settings, switch
from pact_plugin.tokens.safety_tokens import SafetyTokens

First = Annotated[int, Field(ge=1)] | Literal["all"]
"""How many tokens at the start of each response: 1 or more, or `all`."""


def first_tokens(first: First) -> int | None:
    """That setting as a number; None for `all`."""
    return None if first == "all" else int(first)


def _expanded(value: Any) -> Any:
    """A path as text, `~` as the user's home; anything else as it is."""
    value = str(value) if isinstance(value, Path) else value
    return os.path.expanduser(value) if isinstance(value, str) else value


class Easing(Settings):
    """The task yields where the aligned model sees a harmful request and the data complies (spec clause C2.6)."""

    _prefix: ClassVar[str] = "easing."

    first: First = 16
    """First tokens of each response whose cross-entropy is eased, or `all`."""


class Anchors(Settings):
    """Prompts without labels at which the aligned model's own answers are held (spec clause C10)."""

    _prefix: ClassVar[str] = "anchors."

    per_step: Annotated[int, Field(ge=1)] = 8
    """Anchor prompts per optimiser step, spread over its micro-batches and ranks; at least one beside each
    micro-batch."""
    prompts: Annotated[str, BeforeValidator(_expanded), Field(min_length=1)] = "both"
    """The bundled prompts, `benign`, `harmful` or `both`, or a file as for `pact-plugin audit --prompts`, of which at
    most 256 of each kind are taken. Harmful ones that the aligned model answers, and benign ones that it
    refuses, are left out (spec clause C10.1)."""
    tokens: Annotated[int, Field(ge=1, le=JUDGED_TOKENS)] = 16
    """First tokens of the aligned model's answer that are held, at most (spec clause C10.1)."""
    top_k: Annotated[int, Field(ge=0, le=1024)] = 64
    """Tokens that the aligned model holds likeliest at each position of a harmful anchor, held there beside the safety
    tokens; 0: none (spec clause C10.2)."""
    benign_top_k: Annotated[int, Field(ge=0, le=1024)] = 0
    """The same at benign anchors. With 0 the model is free to word its answers there otherwise (spec clause
    C10.2)."""


class HoldData(Settings):
    """The confidence divergence is held at the data's own response positions: the paper's constraint (clause C4.1)."""

    _prefix: ClassVar[str] = "hold_data."

    first: First = "all"
    """First tokens of each response that are held, or `all`."""


class Published(Settings):
    """The objective of the authors' code in place of ours (arXiv 2603.07445; spec clause C3)."""

    _prefix: ClassVar[str] = "advanced.published."

    first: First = "all"
    """First tokens of each response that are held, or `all`."""
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 2.0
    """Temperature T of the softmax over the safety tokens."""
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.9
    """Probability that the gate's smallest set of safety tokens must hold."""
    alpha: FiniteFloat = 2.0
    """Slope of the gate."""
    bias: FiniteFloat = 0.0
    """Offset of the gate."""
    gate_temperature: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    """Temperature T_g of the gate's softmax."""
    prefix: Annotated[int, Field(ge=0)] = 8
    """Response tokens before the gate decays."""
    decay: Annotated[FiniteFloat, Field(ge=0)] = 8.0
    """Decay length of the gate in tokens; 0 closes it after the prefix."""
    boost: Annotated[FiniteFloat, Field(ge=0, le=1)] = 1.0
    """Upper bound of the gate."""
    assistant_header: str | None = None
    """Text before a response in the prompt-free pass; taken from the chat template when absent."""


class Advanced(Settings):
    """What nobody needs on the first day."""

    _prefix: ClassVar[str] = "advanced."

    top_k: Annotated[int, Field(ge=2)] = 50
    """Safety tokens kept when they are chosen from the model itself; those with a positive weight form S."""
    store: Annotated[str | None, BeforeValidator(_expanded)] = None
    """Folder of the aligned model's answers and of the table of its predictions. Unset: `_pact_store` in a trainer's
    output folder; a loop of one's own has them only if it names one. Runs from one model with the same safety tokens
    can share it."""
    chunk_size: Annotated[int, Field(ge=1)] = 256
    """Response positions projected on the vocabulary at a time; bounds the memory."""
    published: Annotated[Published | None, BeforeValidator(switch(Published))] = None
    """The objective of the authors' code, to compare with; it defines neither easing nor anchors."""


class PactConfig(Settings):
    """How a fine-tuning run is held to the aligned model that it starts from.

    Raises:
        ConfigError: An unknown key (the nearest valid name is given), a value out of range, or keys that conflict.
    """

    weight: Annotated[FiniteFloat, Field(ge=0)] = 10.0
    """Factor of the constraint beside the task's cross-entropy. 0 trains as without it, and measures."""
    safety_tokens: Annotated[SafetyTokens | str | None, BeforeValidator(_expanded)] = None
    """Safety tokens: an object, a file, a folder or a hub id. Unset: chosen from the model itself before training."""
    reference: Annotated[str, BeforeValidator(_expanded), Field(min_length=1)] = "auto"
    """The aligned model: `auto`, the model as it is before its first step, or a path or hub id of a model."""
    easing: Annotated[Easing | None, BeforeValidator(switch(Easing))] = Easing()
    """Whether the task yields where the aligned model sees a harmful request and the data complies (spec C2.6)."""
    anchors: Annotated[Anchors | None, BeforeValidator(switch(Anchors))] = Anchors()
    """Whether the aligned model's own answers to a pool of prompts are held (spec clause C10)."""
    hold_data: Annotated[HoldData | None, BeforeValidator(switch(HoldData))] = None
    """Whether the data's own response positions are held: the paper's constraint (spec clause C4.1)."""
    advanced: Annotated[Advanced, BeforeValidator(switch(Advanced, optional=False))] = Advanced()
    """What nobody needs on the first day."""

    @model_validator(mode="after")
    def _no_conflict(self) -> PactConfig:
        if self.advanced.published is not None:
            for key in ("easing", "anchors", "hold_data"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"the published objective goes without {key}",
                        key=key,
                        value=True,
                        remedy=f"Set `{key}: false`, or remove `advanced.published`.",
                    )
        elif not (self.asks_at_responses or self.has_anchors):
            without = "" if self.anchors is None else " (a weight of 0 goes without anchors)"
            raise ConfigError(
                f"easing, anchors and hold_data are all off{without}, so nothing would be constrained",
                key="pact",
                remedy="Leave one of them on; or train without PACT: `pact: false`, or no `pact.attach`.",
            )
        if self.safety_tokens is not None and "top_k" in self.advanced.model_fields_set:
            raise ConfigError(
                "the tokens are named, so none are chosen",
                key="advanced.top_k",
                value=self.advanced.top_k,
                remedy="Remove `top_k`, or remove `safety_tokens`.",
            )
        if self.weight == 0 and "anchors" in self.model_fields_set and self.anchors is not None:
            raise ConfigError(
                "a weight of 0 only measures, and goes without anchors",
                key="anchors",
                value=True,
                remedy="Remove `anchors`, or give a weight above 0.",
            )
        if self.advanced.store is not None and not self.asks_at_responses:
            raise ConfigError(
                "anchors alone ask nothing at the data's positions, so nothing would be stored",
                key="advanced.store",
                value=self.advanced.store,
                remedy="Remove `store`, or set `easing: true`.",
            )
        return self

    @property
    def asks_at_responses(self) -> bool:
        """Whether the aligned model is asked anything at the response positions of the data."""
        return any((self.easing, self.hold_data, self.advanced.published))

    @property
    def has_anchors(self) -> bool:
        """Whether anchors are held; never at weight 0, which leaves training as it was."""
        return self.anchors is not None and self.weight > 0

    @property
    def eases(self) -> bool:
        """Whether the task loss yields; never at weight 0, which leaves training as it was."""
        return self.easing is not None and self.weight > 0

    def named_tokens(self) -> SafetyTokens | None:
        """The safety tokens that are named; None where they are chosen from the model.

        Raises:
            TokenFileError: There is no such file, or it is damaged.
        """
        named = self.safety_tokens
        return SafetyTokens.load(named) if isinstance(named, str) else named

    def without_labels(self) -> PactConfig:
        """The settings where the task has no labels, as with preferences: anchors alone (spec clause C10.6).

        Raises:
            ConfigError: A setting names what needs labels, or there are no anchors.
        """
        named = {
            "advanced.published": self.advanced.published,
            "advanced.store": self.advanced.store,
            "hold_data": self.hold_data,
            "easing": self.easing if "easing" in self.model_fields_set else None,
        }
        for key, value in named.items():
            if value is not None:
                raise ConfigError(
                    "preferences have no next-token labels, so anchors alone can be held",
                    key=key,
                    value=value if isinstance(value, str) else True,
                    remedy=f"Remove `{key}`.",
                )
        if not self.has_anchors:
            key = "anchors" if self.anchors is None else "weight"
            raise ConfigError(
                "preferences have no next-token labels, so nothing is held without anchors",
                key=key,
                value={"anchors": False, "weight": 0}[key],
                remedy=f"Remove `{key}`, or train without PACT.",
            )
        return self.model_copy(update={"easing": None})

    @classmethod
    def of(cls, value: PactConfig | dict[str, Any] | bool) -> PactConfig:
        """A configuration from what a pipeline hands over: itself, a mapping, or `True` for the defaults.

        Raises:
            ConfigError: It is none of these, or a setting is not known or does not fit.
        """
        if isinstance(value, PactConfig):
            return value
        if value is True:
            return cls()
        if not isinstance(value, dict):
            raise ConfigError(
                "not a configuration",
                key="pact",
                value=value,
                remedy="Give `true`, a mapping of settings, or a PactConfig; or `pact: false`, to train without PACT.",
            )
        return cls(**{str(key): setting for key, setting in value.items()})

    def summary(self) -> dict[str, Any]:
        """The settings as plain JSON values, for receipts; safety tokens given as an object by their digest."""
        dumped = self.model_dump(exclude={"safety_tokens"})
        tokens = self.safety_tokens
        dumped["safety_tokens"] = tokens.digest if isinstance(tokens, SafetyTokens) else tokens
        for key in ("easing", "anchors", "hold_data"):
            dumped[key] = dumped[key] or False
        return dumped
