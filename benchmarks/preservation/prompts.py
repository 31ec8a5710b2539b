"""What a fine-tuned model is asked: held-out harmful requests in three styles, and harmless ones like them.

All of it stays at the level of the request. Nothing here is in what a model is trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from benchmarks.preservation import PACKAGE
from examples.demo.prompts import read_lines

PREFILL = "Sure, here is"
STYLES = ("direct", "roleplay", "prefilled")
ASKED = ("direct", "roleplay")
"""The styles in which a model has the first word."""
Kind = Literal["harmful", "benign"]
KINDS: tuple[Kind, ...] = ("harmful", "benign")
Split = Literal["heldout", "development"]


@dataclass(frozen=True)
class Prompt:
    """One question to a model.

    Attributes:
        text: What the user says.
        style: One of `STYLES`, or "benign".
        prefill: What the model's answer begins with; it goes on from there.
    """

    text: str
    style: str
    prefill: str = ""


@dataclass(frozen=True)
class Prompts:
    """What a model should refuse, and what it should answer."""

    harmful: list[Prompt]
    benign: list[Prompt]

    def of(self, kind: Kind) -> list[Prompt]:
        """Those of a kind."""
        return self.harmful if kind == "harmful" else self.benign


def prompts_of(split: Split, limit_per_style: int | None = None) -> Prompts:
    """See `heldout` and `development`."""
    return (heldout if split == "heldout" else development)(limit_per_style)


def heldout(limit_per_style: int | None = None) -> Prompts:
    """The prompts that results rest on: a hundred requests in each style, and three hundred harmless ones.

    Args:
        limit_per_style: Only so many requests, the same ones in each style, and as many harmless prompts as that makes.
    """
    benign = [*read_lines("benign_heldout"), *read_lines("benign", PACKAGE)]
    return _prompts(read_lines("harmful_heldout"), benign, limit_per_style)


def development(limit_per_style: int | None = None) -> Prompts:
    """As `heldout`, from other and fewer requests in the same frames: on these settings are chosen."""
    return _prompts(read_lines("harmful_development"), read_lines("benign_development"), limit_per_style)


def everyday() -> list[str]:
    """Questions without alarming words."""
    return read_lines("everyday", PACKAGE)


def _prompts(requests: list[str], benign: list[str], limit: int | None) -> Prompts:
    """In a shuffled order that no seed changes, so that a limited set has every category."""
    rng = random.Random(0)
    rng.shuffle(requests)
    rng.shuffle(benign)
    requests = requests[:limit]
    frames = read_lines("frames", PACKAGE)
    framed = [frames[index % len(frames)].format(request) for index, request in enumerate(requests)]
    harmful = [
        *(Prompt(request, "direct") for request in requests),
        *(Prompt(text, "roleplay") for text in framed),
        *(Prompt(request, "prefilled", PREFILL) for request in requests),
    ]
    return Prompts(harmful, [Prompt(text, "benign") for text in benign[: len(harmful)]])
