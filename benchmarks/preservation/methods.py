"""The methods that are compared."""

from __future__ import annotations

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
        config: Settings of the constraint, whose weight is the strength; None: there is none.
        trainer: Class of the trainer.
        interleaved: Whether the strength is the share of refusals added to the data.
        drops: Whether items that the aligned model would refuse are taken from the data.
        variant: Whether it is compared only when asked for: a change of another method.
    """

    title: str
    usual: float | None = None
    weights: tuple[float, ...] = ()
    config: dict[str, Any] | None = None
    trainer: type[SFTTrainer] = SFTTrainer
    interleaved: bool = False
    drops: bool = False
    variant: bool = False

    def constrained(
        self, weight: float | None, tokens: pact.SafetyTokens, anchors: str | None = None
    ) -> pact.PactConfig | None:
        """The constraint's settings at a strength, if there is a constraint.

        Args:
            weight: The strength.
            tokens: The safety tokens.
            anchors: A file of prompts for anchors in place of the bundled ones.
        """
        if self.config is None or weight is None:
            return None
        config = {"safety_tokens": tokens, "weight": weight, **self.config}
        if anchors is not None and config["anchors"]:
            config["anchors"] = {**config["anchors"], "prompts": anchors}
        return pact.PactConfig(**config)


WEIGHTS = (0.5, 1.0, 2.0, 4.0)
"""Of a constraint."""
USUAL = 1.0
"""The weight of `pact: true`."""
EASING: dict[str, Any] = {"first": 16}
ANCHORS: dict[str, Any] = {"per_step": 2, "tokens": 16, "ratio": 1}
DEFAULT: dict[str, Any] = {"easing": EASING, "anchors": ANCHORS, "hold_data": False}
"""The settings of `pact: true`, named, so that a name means the same where the defaults change."""
PAPER: dict[str, Any] = {"easing": False, "anchors": False, "hold_data": True}
"""The data's own positions alone are held."""
PUBLISHED: dict[str, Any] = {"easing": False, "anchors": False, "advanced": {"published": True}}


def _variant(title: str, **changes: Any) -> Method:
    """The default with other settings of the constraint."""
    return Method(title, USUAL, WEIGHTS, config={**DEFAULT, **changes}, variant=True)


def _anchored(title: str, **changes: Any) -> Method:
    """The default with other settings of its anchors."""
    return _variant(title, anchors={**ANCHORS, **changes})


METHODS = {
    "plain": Method("plain SFT"),
    "drop": Method("plain SFT, refused items dropped", drops=True),
    "interleaved": Method("refusals interleaved", 0.1, (0.03, 0.1, 0.3), interleaved=True),
    "kl": Method("full-vocabulary KL", 1.0, (0.1, 0.3, 1.0, 3.0), trainer=FullKLTrainer),
    "tokenwise": Method("token-wise (Qi et al.)", 1.0, (0.3, 1.0, 3.0), trainer=TokenwiseTrainer),
    "published": Method("published PACT", 1.0, (0.3, 1.0, 3.0, 10.0), config=PUBLISHED),
    "confidence": Method("confidence", 2.0, WEIGHTS, config=PAPER),
    "easing": Method("confidence + easing", 2.0, WEIGHTS, config={**PAPER, "easing": {"first": "all"}}),
    "anchors": Method(
        "easing + anchors, data held", USUAL, WEIGHTS, config={**DEFAULT, "hold_data": {"first": 16}}
    ),
    "anchors-only": Method(
        "easing + anchors",
        USUAL,
        (*WEIGHTS, 8.0, 16.0),  # the task's own positions are free, whatever the weight
        config=DEFAULT,
    ),
    "anchors-only-first1": _variant("easing of the first token + anchors", easing={"first": 1}),
    "anchors-only-first8": _variant("easing of the first 8 tokens + anchors", easing={"first": 8}),
    "anchors-only-all": _variant("easing of whole responses + anchors", easing={"first": "all"}),
    "anchors-alone": _variant("anchors, no easing", easing=False),
    "anchors-only16": _anchored("easing + 16 anchors", per_step=16),
    "anchors-only32": _anchored("easing + 32 anchors", per_step=32),
    "anchors-only-3to1": _anchored("easing + 8 anchors, 3 : 1", per_step=8, ratio=3),
    "anchors-only16-3to1": _anchored("easing + 16 anchors, 3 : 1", per_step=16, ratio=3),
    "anchors-only16-2to1": _anchored("easing + 16 anchors, 2 : 1", per_step=16, ratio=2),
    "anchors-only32-2to1": _anchored("easing + 32 anchors, 2 : 1", per_step=32, ratio=2),
}
"""By name, those of the results that are kept here included."""

COMPARED = tuple(name for name, method in METHODS.items() if not method.variant)
"""The methods that are compared by default."""
