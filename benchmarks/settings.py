"""What is measured: one shape, one way to train it, and the references to compare."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.shapes import SHAPES, Shape
from pact_plugin import PactConfig, SafetyTokens
from pact_plugin.errors import ConfigError

PLAIN = "plain"
"""The run without a constraint."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
REFERENCES = ("stored", "adapter_off", "frozen_copy", "frozen_model")
_NAMES = ", ".join(REFERENCES)
_MODE = re.compile(
    rf"(?P<objective>published/)?(?P<reference>{'|'.join(REFERENCES)})"
    r"(\+(?P<anchors>[1-9]\d*))?(@(?P<first_n>[1-9]\d*))?"
)


@dataclass(frozen=True)
class Mode:
    """One way to constrain, written `[published/]REFERENCE[+ANCHORS][@FIRST_N]`: `stored+4@64`, `published/stored`."""

    reference: str
    objective: Literal["confidence", "published"] = "confidence"
    first_n: int | None = None
    anchors: int = 0

    @classmethod
    def parse(cls, text: str) -> Mode:
        """From its notation.

        Raises:
            ConfigError: It is none.
        """
        found = _MODE.fullmatch(text)
        if found is None or (found["objective"] and found["anchors"]):
            raise ConfigError(
                "not a way to constrain",
                key="mode",
                value=text,
                remedy=f"[published/]REFERENCE[@FIRST_N] or REFERENCE[+ANCHORS][@FIRST_N], with one of {_NAMES}.",
            )
        return cls(
            found["reference"],
            "published" if found["objective"] else "confidence",
            int(found["first_n"]) if found["first_n"] else None,
            int(found["anchors"] or 0),
        )

    def config(self, tokens: SafetyTokens, folder: Path) -> PactConfig:
        """For the constraint; a stored reference goes below the folder."""
        own = "auto" if self.reference == "frozen_model" else self.reference  # the model is handed over
        published: dict[str, Any] = {}
        if self.objective == "published":
            published = {"published": {"assistant_header": "w2 w3 w4"}}
        return PactConfig(
            **published,
            objective=self.objective,
            reference=own,
            first_n=self.first_n or "all",
            anchors=self.anchors,
            safety_tokens=tokens,
            store=str(folder / f"{self.objective}-{self.first_n}") if own == "stored" else None,
        )


@dataclass(frozen=True)
class Settings:
    """Everything that a measurement depends on besides the machine."""

    shape: str = "tiny"
    train: str = "lora"
    """`lora` (all linear layers) or `full`."""
    loss: str = "chunked"
    """`chunked`: TRL's SFTTrainer, which builds no full logits; `full`: the plain Trainer, which does."""
    modes: tuple[str, ...] = ("stored", "adapter_off")
    response_share: float = 0.5
    batch: int | None = None
    length: int | None = None
    vocab_size: int | None = None
    """The last three replace those of the shape."""
    tokens: int = 50
    """Safety tokens."""
    rank: int = 16
    """Of the adapter."""
    cycles: int = 9
    """Measured steps of each kind."""
    warmup: int = 2
    """Steps of each kind before."""
    fill_batches: int = 8
    """Batches of different documents that the store is filled with."""
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
        if self.train == "full" and any(Mode.parse(mode).reference == "adapter_off" for mode in self.modes):
            raise ConfigError(
                "there is no adapter to switch off in full fine-tuning",
                key="mode",
                value="adapter_off",
                remedy="Use stored, frozen_copy or frozen_model.",
            )

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


def default_modes(train: str) -> tuple[str, ...]:
    """Every reference that this kind of training has."""
    if train == "full":
        return ("stored", "frozen_copy", "frozen_model", "published/frozen_copy")
    return ("stored", "adapter_off", "frozen_copy", "frozen_model", "published/adapter_off")
