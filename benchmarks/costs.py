"""What a kind of step costs, as counted, and the anchors it has."""

from __future__ import annotations

from dataclasses import dataclass

from pact_plugin.config import Anchors

_DEFAULT = Anchors()


@dataclass(frozen=True)
class AnchorRows:
    """The anchors of a step, as one batch.

    Args:
        rows: Number of anchors.
        length: Tokens read of each: by default the bundled prompts' mean in Qwen2.5's chat format, which has a system
            message, and the answer. Without that message it is 38 to 42.
        held: Positions held, of all together.
        tokens: Distinct tokens that are buckets at any of them; by default as many as there can be.
    """

    rows: int = _DEFAULT.per_step
    length: int = 58
    held: int = _DEFAULT.per_step * _DEFAULT.tokens
    tokens: int | None = None

    def buckets(self, safety_tokens: int, top_k: int, vocab_size: int) -> int:
        """Distinct tokens that are buckets, from the number of safety tokens and `top_k` others at each position."""
        return self.tokens or min(safety_tokens + top_k * self.held, vocab_size - 1)


@dataclass(frozen=True)
class Count:
    """One kind of step. FLOPs are 2 for each multiplication and addition, attention counted without its causal half."""

    flops: int
    extra_flops: int = 0
    """Of the constraint, beside the plain step."""
    anchor_flops: int = 0
    """Of these, those of anchors."""
    reading_flops: int = 0
    """Of reading the documents of a step once, before the first step."""
    held_bytes: int = 0
    """What the reference holds all the time: copied parameters or a second model."""
    passing_bytes: int = 0
    """Peak of what the constraint allocates while it runs, reference and backward pass included."""

    @property
    def plain(self) -> int:
        """FLOPs of the plain step."""
        return self.flops - self.extra_flops

    @property
    def ratio(self) -> float:
        """FLOPs to those of the plain step."""
        return self.flops / self.plain

    @property
    def anchor_share(self) -> float:
        """FLOPs of anchors, as a share of the plain step's."""
        return self.anchor_flops / self.plain

    @property
    def reading_share(self) -> float:
        """FLOPs of reading the data once, as a share of a plain epoch's."""
        return self.reading_flops / self.plain

    def run_ratio(self, epochs: int) -> float:
        """Ratio of a run's FLOPs, reading the data included, to those of a plain run of as many epochs."""
        return self.ratio + self.reading_share / epochs
