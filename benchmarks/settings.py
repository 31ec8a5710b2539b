"""What is measured: one shape, one way to train it, and the references to compare."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, Shape
from pact_plugin import PactConfig, SafetyTokens
from pact_plugin.errors import ConfigError

PLAIN = "plain"
"""The run without a constraint."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TERMS = ("easing", "anchors", "hold")
DEFAULT = ("easing", "anchors")
"""The terms of `pact: true`."""
_TERM = "|".join(TERMS)
_MODE = re.compile(
    rf"(?P<terms>default|published|(?:{_TERM})(?:\+(?:{_TERM}))*)(?:/(?P<where>table|step|model))?"
    r"(?:@(?P<first>[1-9]\d*))?"
)


@dataclass(frozen=True)
class Mode:
    """One way to constrain, written `TERMS[/WHERE][@FIRST]`: `default`, `easing+anchors+hold`, `hold/step@64`.

    Args:
        terms: Some of `TERMS`, or `published` alone.
        where: `table`, read before training; `step`, a pass in each step, as for streaming data, with the adapter off
            or by a copy of the parameters; `model`, the same by a second model.
        first: First tokens of each response at which easing, hold or the published objective look; their own default
            when None.
    """

    terms: tuple[str, ...]
    where: str = "table"
    first: int | None = None

    @classmethod
    def parse(cls, text: str) -> Mode:
        """From its notation.

        Raises:
            ConfigError: It is none.
        """
        found = _MODE.fullmatch(text)
        if found is None:
            raise ConfigError(
                "not a way to constrain",
                key="mode",
                value=text,
                remedy=f"TERMS[/table|/step|/model][@FIRST], with TERMS default, published, or some of "
                f"{', '.join(TERMS)} joined by +.",
            )
        named = DEFAULT if found["terms"] == "default" else tuple(found["terms"].split("+"))
        mode = cls(named, found["where"] or "table", int(found["first"]) if found["first"] else None)
        if len(set(named)) < len(named) or (not mode.looks and (found["where"] or mode.first)):
            raise ConfigError(
                "anchors alone ask nothing at the data's positions" if not mode.looks else "a term twice",
                key="mode",
                value=text,
                remedy="Leave the rest out.",
            )
        return mode

    @property
    def looks(self) -> bool:
        """Whether any term looks at the data's response positions."""
        return self.terms != ("anchors",)

    def config(self, tokens: SafetyTokens, folder: Path, prompts: str = "both") -> PactConfig:
        """For the constraint.

        Args:
            tokens: The safety tokens.
            folder: In which tables lie, each in a folder of its own.
            prompts: `anchors.prompts`.
        """
        named = ".".join(map(str, (*self.terms, self.first)))
        advanced: dict[str, Any] = {}
        if self.where == "table" and self.looks:
            advanced["store"] = folder / named
        first: Any = True if self.first is None else {"first": self.first}
        if "published" in self.terms:
            behind = {"assistant_header": "w2 w3 w4"} | ({} if self.first is None else first)
            advanced["published"] = behind
        return PactConfig.of(
            {
                "safety_tokens": tokens,
                "easing": first if "easing" in self.terms else False,
                "anchors": {"prompts": prompts} if "anchors" in self.terms else False,
                "hold_data": first if "hold" in self.terms else False,
                "advanced": advanced,
            }
        )


@dataclass(frozen=True)
class Settings:
    """Everything that a measurement depends on besides the machine."""

    shape: str = "tiny"
    train: str = "lora"
    """`lora` (all linear layers) or `full`."""
    loss: str = "chunked"
    """`chunked`: TRL's SFTTrainer, which builds no full logits; `full`: the plain Trainer, which does."""
    modes: tuple[str, ...] = ("default", "default/step")
    response_share: float = 0.5
    batch: int | None = None
    length: int | None = None
    vocab_size: int | None = None
    """The last three replace those of the shape."""
    tokens: int = 50
    """Safety tokens."""
    prompts: str = "both"
    """Of anchors; or a file of theirs."""
    rank: int = 16
    """Of the adapter."""
    cycles: int = 9
    """Measured steps of each kind."""
    warmup: int = 2
    """Steps of each kind before."""
    fill_batches: int = 8
    """Batches of different documents that tables are filled with."""
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    ranks: int = 1
    gradient_checkpointing: bool = False
    clock: str = "wall"
    """`wall`, or `cpu`: the processor time of the process, which other processes take nothing from."""
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("shape", self.shape, tuple(SHAPES)),
            ("train", self.train, ("lora", "full")),
            ("loss", self.loss, ("chunked", "full")),
            ("clock", self.clock, tuple(CLOCKS)),
        ):
            if value not in valid:
                raise ConfigError("unknown", key=key, value=value, remedy=f"One of {', '.join(valid)}.")
        if self.clock == "cpu" and self.device != "cpu":
            raise ConfigError(
                "the processor's time says nothing of an accelerator's",
                key="clock",
                value=self.clock,
                remedy="Use wall.",
            )
        for mode in self.modes:
            Mode.parse(mode)

    @property
    def sizes(self) -> Shape:
        """The shape, with what replaces it."""
        given = {"batch": self.batch, "length": self.length, "vocab_size": self.vocab_size}
        replaced: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(SHAPES[self.shape], **replaced)

    def to_json(self) -> str:
        """For a process that measures."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**(values | {"modes": tuple(values["modes"])}))


MODES = ("default", "default/step", "hold", "hold/step", "hold/model", "published/step")
"""What is compared by default, with LoRA and in full fine-tuning."""
