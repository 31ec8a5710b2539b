"""The methods that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl import SFTTrainer

import pact_plugin as pact
from benchmarks.preservation.rivals import FullKLTrainer, TokenwiseTrainer


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        title: For tables and plots.
        usual: Its strength in tables; None if it has none.
        weights: Strengths along its curve.
        config: Settings of the constraint, from a strength; None: there is none.
        trainer: Class of the trainer.
        interleaved: Whether the strength is the share of refusals added to the data.
        drops: Whether items that the aligned model would refuse are taken from the data.
        variant: Whether it is compared only when asked for: a change of another method.
    """

    title: str
    usual: float | None = None
    weights: tuple[float, ...] = ()
    config: Callable[[float], dict[str, Any]] | None = None
    trainer: type[SFTTrainer] = SFTTrainer
    interleaved: bool = False
    drops: bool = False
    variant: bool = False

    def constrained(self, weight: float | None, tokens: pact.SafetyTokens) -> pact.PactConfig | None:
        """The constraint's settings at a strength, if there is a constraint."""
        if self.config is None or weight is None:
            return None
        return pact.PactConfig(safety_tokens=tokens, weight=weight, **self.config(weight))


def _settings(**settings: Any) -> Callable[[float], dict[str, Any]]:
    return lambda weight: settings


METHODS = {
    "plain": Method("plain SFT"),
    "drop": Method("plain SFT, refused items dropped", drops=True),
    "interleaved": Method("refusals interleaved", 0.1, (0.03, 0.1, 0.3), interleaved=True),
    "kl": Method("full-vocabulary KL", 1.0, (0.1, 0.3, 1.0, 3.0), trainer=FullKLTrainer),
    "tokenwise": Method("token-wise (Qi et al.)", 1.0, (0.3, 1.0, 3.0), trainer=TokenwiseTrainer),
    "published": Method(
        "published PACT", 1.0, (0.3, 1.0, 3.0, 10.0), config=_settings(objective="published")
    ),
    "confidence": Method("confidence", 2.0, (0.5, 1.0, 2.0, 4.0), config=_settings(easing=False, anchors=0)),
    "confidence-drop": Method(
        "confidence, refused items dropped",
        2.0,
        (0.5, 1.0, 2.0, 4.0),
        config=_settings(easing=False, anchors=0),
        drops=True,
    ),
    "easing": Method(
        "confidence + easing", 2.0, (0.5, 1.0, 2.0, 4.0), config=_settings(easing=True, anchors=0)
    ),
    "anchors": Method(
        "easing + 4 anchors", 2.0, (0.5, 1.0, 2.0, 4.0), config=_settings(easing=True, anchors=4)
    ),
    "anchors-benign": Method(
        "easing + 4 benign anchors",
        2.0,
        (0.5, 1.0, 2.0, 4.0),
        config=_settings(easing=True, anchors=4, anchor_prompts="benign"),
        variant=True,
    ),
    "easing-first8": Method(
        "easing, first 8 tokens",
        2.0,
        (0.5, 1.0, 2.0, 4.0),
        config=_settings(easing=True, anchors=0, first_n=8),
        variant=True,
    ),
}
"""By name."""

COMPARED = tuple(name for name, method in METHODS.items() if not method.variant)
"""The methods that are compared by default."""
