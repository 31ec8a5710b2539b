"""PactConfig: every setting of the constraint, validated, with the same keys in every pipeline."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from pact_plugin.errors import ConfigError
from pact_plugin.tokens.safety_tokens import SafetyTokens

OWN_REFERENCES = ("auto", "stored", "adapter_off", "frozen_copy")
"""References that the model in training provides itself."""
ANCHORS, ANCHOR_TOKENS, ANCHOR_RATIO = 8, 4, 1
"""Anchors of an optimiser step, first tokens of each, benign to each harmful, unless set: benchmarks/preservation."""
FIRST_N = 16
"""First tokens of each response that are constrained and eased, unless set: benchmarks/preservation."""


class _Settings(BaseModel):
    _prefix: ClassVar[str] = ""
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        for name, field in type(self).model_fields.items():
            if isinstance(values.get(name), bool) and bool not in get_args(field.annotation):
                raise ConfigError(  # pydantic takes it for a number
                    "neither true nor false is a value of this setting",
                    key=type(self)._prefix + name,
                    value=values[name],
                    remedy=f"See `{(type(self)._prefix or name).removesuffix('.')}` in the description of PactConfig.",
                )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_config_error(type(self), error) from error


class PublishedSettings(_Settings):
    """Settings of the published objective (arXiv 2603.07445; clause C3 of spec/PACT.md)."""

    _prefix: ClassVar[str] = "published."

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

    @property
    def divergence(self) -> dict[str, Any]:
        """The keyword arguments of `published_divergence`."""
        return self.model_dump(exclude={"assistant_header"})


def _path_to_str(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class PactConfig(_Settings):
    """How a fine-tuning run is held to the aligned model it starts from.

    Raises:
        ConfigError: An unknown key (the nearest valid name is given), a value out of range, or keys that conflict.
    """

    objective: Literal["confidence", "published"] = "confidence"
    """`confidence` compares the safety tokens' absolute probabilities (spec clause C2), `published` is the
    objective of the authors' code (spec clause C3)."""
    weight: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    """Factor of the constraint beside the task's cross-entropy; 0 only measures."""
    easing: bool | None = None
    """Let the task yield where the aligned model is sure to refuse and the label does not (spec clause C2.6).
    Unset: on for `confidence`, off for `published`, which does not define it."""
    safety_tokens: Annotated[SafetyTokens | str | None, BeforeValidator(_path_to_str)] = None
    """Safety tokens: an object, a file, a folder or a hub id. Unset: chosen from the model itself before training."""
    reference: Annotated[str, BeforeValidator(_path_to_str), Field(min_length=1)] = "auto"
    """The aligned model: `auto`, `stored` (its predictions for the whole data set, written to disk before the first
    step), `adapter_off` (PEFT adapters that start at zero), `frozen_copy` (a copy of the parameters in training), or a
    path or hub id of a model."""
    store: Annotated[str | None, BeforeValidator(_path_to_str)] = None
    """Folder of the stored predictions. Unset: `_pact_store` in a trainer's output folder; a loop of one's own must
    name it."""
    first_n: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Constrain and ease only the first tokens of every response, this many, or `all` of them (spec clause C5.6).
    Unset: 16 for `confidence`, all for `published`."""
    hold: Literal["all", "anchors"] | None = None
    """What is held to the aligned model: `all`, the response positions of the fine-tuning data and the anchors,
    or the `anchors` alone, while the task goes on yielding by `easing` (spec clause C10.5). Unset: the anchors, or
    in a run without them the data."""
    anchors: Annotated[int | None, Field(ge=0)] = None
    """Prompts without labels that are constrained in each optimiser step, so many, at the aligned model's own answers
    (spec clause C10), spread over its micro-batches and ranks, and at least one beside each micro-batch. Unset: 8 for
    `confidence`, or none, with a warning, where a run cannot have them; none for `published`, which does not define
    them."""
    anchor_prompts: Annotated[str, BeforeValidator(_path_to_str), Field(min_length=1)] = "both"
    """Where anchors come from: the bundled prompts, `benign`, `harmful` or `both`, or a file as for
    `pact-plugin audit --prompts`, of which at most 256 of each kind are taken. Harmful ones that the aligned model
    would answer, and harmless ones that it would refuse, are left out (spec clause C10.1)."""
    anchor_tokens: Annotated[int, Field(ge=1)] = ANCHOR_TOKENS
    """First tokens of the aligned model's answer to an anchor that are held, at most (spec clause C10.1). Few hold
    what matters most, the decision to refuse or to help."""
    anchor_ratio: Annotated[int, Field(ge=1)] = ANCHOR_RATIO
    """Benign anchors to each harmful one (spec clause C10.4). More of them keep refusals from spreading to harmless
    requests, fewer from being lost."""
    published: PublishedSettings = PublishedSettings()
    """Settings of the published objective."""
    top_k: Annotated[int, Field(ge=2)] = 50
    """Safety tokens kept when they are chosen from the model itself."""
    chunk_size: Annotated[int, Field(ge=1)] = 256
    """Response positions projected on the vocabulary at a time; bounds the memory."""

    @model_validator(mode="after")
    def _no_conflict(self) -> PactConfig:
        if self.objective == "published" and self.easing:
            raise ConfigError(
                "the published objective does not define easing",
                key="easing",
                value=True,
                remedy="Remove `easing`, or set `objective: confidence`.",
            )
        if self.objective == "confidence" and "published" in self.model_fields_set:
            raise ConfigError(
                "these settings have no effect on the confidence objective",
                key="published",
                value=self.published.model_dump(exclude_unset=True),
                remedy="Remove `published`, or set `objective: published`.",
            )
        if self.objective == "published" and self.anchors:
            raise ConfigError(
                "the published objective does not define anchors",
                key="anchors",
                value=self.anchors,
                remedy="Remove `anchors`, or set `objective: confidence`.",
            )
        for key in ("anchor_prompts", "anchor_tokens", "anchor_ratio"):
            if key in self.model_fields_set and (self.anchors == 0 or self.objective == "published"):
                raise ConfigError(
                    "the setting is of anchors, and there are none",
                    key=key,
                    value=getattr(self, key),
                    remedy=f"Set `anchors` to 1 or more with `objective: confidence`, or remove `{key}`.",
                )
        if "anchor_ratio" in self.model_fields_set and self.anchor_prompts in ("benign", "harmful"):
            raise ConfigError(
                "the anchors are of one kind, so there is no ratio",
                key="anchor_ratio",
                value=self.anchor_ratio,
                remedy="Remove `anchor_ratio`, or set `anchor_prompts: both`.",
            )
        if self.hold == "anchors" and (self.anchors == 0 or self.objective == "published"):
            raise ConfigError(
                "there are no anchors to hold, so nothing would be constrained",
                key="hold",
                value=self.hold,
                remedy="Set `anchors` to 1 or more with `objective: confidence`, or `hold: all`.",
            )
        if self.store is not None and self.reference not in ("auto", "stored"):
            raise ConfigError(
                f"nothing is stored with `reference: {self.reference}`",
                key="store",
                value=self.store,
                remedy="Remove `store`, or set `reference: stored`.",
            )
        return self

    @property
    def eases(self) -> bool:
        """Whether the task loss yields; never at weight 0, which leaves training as it was."""
        wanted = self.objective == "confidence" if self.easing is None else self.easing
        return wanted and self.weight > 0

    @property
    def first_tokens(self) -> int | None:
        """Tokens of each response that are constrained and eased; None for all."""
        if self.first_n is None:
            return FIRST_N if self.objective == "confidence" else None
        return None if self.first_n == "all" else self.first_n

    @property
    def anchor_count(self) -> int:
        """Anchors of an optimiser step; none at weight 0, which leaves training as it was."""
        if self.objective != "confidence" or self.weight == 0:
            return 0
        return ANCHORS if self.anchors is None else self.anchors

    def holds_data(self, anchors: bool) -> bool:
        """Whether the response positions of the data are held, in a run that has anchors or has none."""
        return self.hold == "all" or (self.hold is None and not anchors)

    @property
    def asks_for_anchors(self) -> bool:
        """Whether a run that cannot have anchors shall stop, not go on without."""
        usual = ("both", ANCHOR_TOKENS, ANCHOR_RATIO)
        own = (self.anchor_prompts, self.anchor_tokens, self.anchor_ratio) != usual
        return self.anchors is not None or own or self.hold == "anchors"

    @classmethod
    def of(cls, value: PactConfig | dict[str, Any] | bool) -> PactConfig:
        """A configuration from what a pipeline hands over: itself, a mapping, or `True` for the defaults."""
        if isinstance(value, PactConfig):
            return value
        if value is True:
            return cls()
        if not isinstance(value, dict):
            raise ConfigError(
                "not a configuration",
                key="pact",
                value=value,
                remedy="Give `true`, a mapping of settings, or a PactConfig.",
            )
        return cls(**{str(key): setting for key, setting in value.items()})

    def summary(self) -> dict[str, Any]:
        """The settings as plain JSON values, for receipts; safety tokens given as an object by their digest."""
        dumped = self.model_dump(exclude={"safety_tokens"})
        tokens = self.safety_tokens
        dumped["safety_tokens"] = tokens.digest if isinstance(tokens, SafetyTokens) else tokens
        dumped["easing"], dumped["anchors"] = self.eases, self.anchor_count
        dumped["first_n"] = self.first_tokens or "all"
        dumped["hold"] = "all" if self.holds_data(self.anchor_count > 0) else "anchors"
        return dumped


def _as_config_error(model: type[_Settings], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])  # what follows says which type of a union
    choices = [one["msg"] for one in error.errors() if one["loc"][0] == name]
    key = model._prefix + name
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Valid keys: {', '.join(model.model_fields)}."
        return ConfigError("unknown key", key=key, value=first["input"], remedy=hint)
    return ConfigError(
        ", or ".join(message[:1].lower() + message[1:] for message in choices),
        key=key,
        value=first["input"],
        remedy=f"See `{key.split('.')[0]}` in the description of PactConfig.",
    )
