"""The methods that are compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl import SFTTrainer

import pact_plugin as pact
from benchmarks.preservation.constraints import Gated
from benchmarks.preservation.gate import GatedConfidenceTrainer
from benchmarks.preservation.rivals import FullKLTrainer, TokenwiseTrainer
from pact_plugin.data.prompts import bundled


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        title: For tables and plots.
        usual: Its strength in tables; None if it has none.
        weights: Strengths along its curve.
        config: Settings of the constraint, whose weight is the strength unless they name another; None: there is none.
        trainer: Class of the trainer.
        interleaved: Whether the strength is the share of refusals added to the data.
        drops: Whether items that the aligned model would refuse are taken from the data.
        tokens: Other safety tokens than the usual ones: a name of `TOKEN_SETS`.
        pool: The anchors are so many of the bundled prompts of each kind, instead of all that the constraint has.
        constraint: Class of the constraint.
        adapts: Whether the strength is a divergence in nats, at which the weight is held (`AdaptiveWeight`).
        variant: Whether it is compared only when asked for: a change of another method.
    """

    title: str
    usual: float | None = None
    weights: tuple[float, ...] = ()
    config: dict[str, Any] | None = None
    trainer: type[SFTTrainer] = SFTTrainer
    interleaved: bool = False
    drops: bool = False
    tokens: str | None = None
    pool: int | None = None
    constraint: type[pact.PactConstraint] = pact.PactConstraint
    adapts: bool = False
    variant: bool = False

    def constrained(
        self, weight: float | None, tokens: pact.SafetyTokens, folder: Path
    ) -> pact.PactConfig | None:
        """The constraint's settings at a strength, if there is a constraint; a file that they name is in the folder."""
        if self.config is None or weight is None:
            return None
        config = {"safety_tokens": tokens, "weight": weight, **self.config}
        if self.pool:
            rows = [asdict(one) for one in bundled().limited(self.pool).prompts]
            folder.mkdir(parents=True, exist_ok=True)
            config["anchor_prompts"] = folder / "anchors.jsonl"
            config["anchor_prompts"].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return pact.PactConfig(**config)


WEIGHTS = (0.5, 1.0, 2.0, 4.0)
"""Of a constraint."""
USUAL = 1.0
"""The weight of `pact: true`."""
DEFAULT = {
    "easing": True,
    "first_n": 16,
    "anchors": 8,
    "anchor_tokens": 4,
    "anchor_ratio": 1,
    "hold": "anchors",
}
"""The settings of `pact: true`, named, so that a name means the same where the defaults change."""
CONFIDENCE = {"easing": False, "first_n": "all", "anchors": 0}
"""The objective alone."""
HELD = "easing + anchors, data held"
"""Title of the method `anchors`."""


def _variant(title: str, changes: dict[str, Any] | None = None, **more: Any) -> Method:
    """The method `anchors` with other settings of the constraint (None: without one), or other fields of `Method`."""
    config = {**DEFAULT, "hold": "all", **(changes or {})}
    config = {key: value for key, value in config.items() if value is not None}
    return Method(title, **{"usual": USUAL, "weights": WEIGHTS, "config": config, "variant": True, **more})


METHODS = {
    "plain": Method("plain SFT"),
    "drop": Method("plain SFT, refused items dropped", drops=True),
    "interleaved": Method("refusals interleaved", 0.1, (0.03, 0.1, 0.3), interleaved=True),
    "kl": Method("full-vocabulary KL", 1.0, (0.1, 0.3, 1.0, 3.0), trainer=FullKLTrainer),
    "tokenwise": Method("token-wise (Qi et al.)", 1.0, (0.3, 1.0, 3.0), trainer=TokenwiseTrainer),
    "published": Method("published PACT", 1.0, (0.3, 1.0, 3.0, 10.0), config={"objective": "published"}),
    "confidence": Method("confidence", 2.0, WEIGHTS, config=CONFIDENCE),
    "confidence-drop": Method(
        "confidence, refused items dropped",
        2.0,
        WEIGHTS,
        config=CONFIDENCE,
        drops=True,
    ),
    "easing": Method("confidence + easing", 2.0, WEIGHTS, config={**CONFIDENCE, "easing": True}),
    "anchors": Method(HELD, USUAL, WEIGHTS, config={**DEFAULT, "hold": "all"}),
    "anchors-only": Method(
        "easing + anchors",
        USUAL,
        (*WEIGHTS, 8.0, 16.0),  # the task's own positions are free, whatever the weight
        config=DEFAULT,
    ),
    "confidence-gated": Method(
        "confidence, gate in probability space", 2.0, WEIGHTS, trainer=GatedConfidenceTrainer, variant=True
    ),
    "anchors-benign": _variant(
        "easing + benign anchors, data held", {"anchor_prompts": "benign", "anchor_ratio": None}
    ),
    "easing-first8": Method(
        "easing, first 8 tokens",
        2.0,
        WEIGHTS,
        config={**CONFIDENCE, "easing": True, "first_n": 8},
        variant=True,
    ),
    "anchors1": _variant("easing + 1 anchor, data held", {"anchors": 1}),
    "anchors2": _variant("easing + 2 anchors, data held", {"anchors": 2}),
    "anchors-first1": _variant(f"{HELD}, first token", {"first_n": 1}),
    "anchors-first8": _variant(f"{HELD}, first 8 tokens", {"first_n": 8}),
    "anchors-only-first1": _variant("easing of the first token + anchors", {"hold": "anchors", "first_n": 1}),
    "anchors-only-first8": _variant(
        "easing of the first 8 tokens + anchors", {"hold": "anchors", "first_n": 8}
    ),
    "anchors-only-all": _variant(
        "easing of whole responses + anchors", {"hold": "anchors", "first_n": "all"}
    ),
    "anchors-only-16tokens": _variant(
        "easing + anchors of 16 tokens", {"hold": "anchors", "anchor_tokens": 16}
    ),
    "anchors-only4-16tokens": _variant(
        "easing + 4 anchors of 16 tokens", {"hold": "anchors", "anchors": 4, "anchor_tokens": 16}
    ),
    "anchors-only16-16tokens": _variant(
        "easing + 16 anchors of 16 tokens", {"hold": "anchors", "anchors": 16, "anchor_tokens": 16}
    ),
    "anchors-only4": _variant("easing + 4 anchors", {"hold": "anchors", "anchors": 4}),
    "anchors-only16": _variant("easing + 16 anchors", {"hold": "anchors", "anchors": 16}),
    "anchors-only32": _variant("easing + 32 anchors", {"hold": "anchors", "anchors": 32}),
    "anchors-only-3to1": _variant("easing + 8 anchors, 3 : 1", {"hold": "anchors", "anchor_ratio": 3}),
    "anchors-only16-3to1": _variant(
        "easing + 16 anchors, 3 : 1", {"hold": "anchors", "anchors": 16, "anchor_ratio": 3}
    ),
    "anchors-only16-2to1": _variant(
        "easing + 16 anchors, 2 : 1", {"hold": "anchors", "anchors": 16, "anchor_ratio": 2}
    ),
    "anchors-only32-2to1": _variant(
        "easing + 32 anchors, 2 : 1", {"hold": "anchors", "anchors": 32, "anchor_ratio": 2}
    ),
    "anchors-only-pool128": _variant("easing + anchors, of 128 prompts", {"hold": "anchors"}, pool=64),
    "anchors-alone": _variant("anchors, no easing", {"easing": False, "hold": "anchors"}),
    "anchors-gated": _variant(f"{HELD}, gated by the first token", constraint=Gated),
    "anchors-no-easing": _variant("confidence + anchors", {"easing": False}),
    "drop-anchors": _variant(f"{HELD}, refused items dropped", drops=True),
    "anchors-only-k8": _variant("easing + anchors, 8 safety tokens", {"hold": "anchors"}, tokens="k8"),
    "anchors-only-k200": _variant("easing + anchors, 200 safety tokens", {"hold": "anchors"}, tokens="k200"),
    "anchors-only-base": _variant("easing + anchors, base contrast", {"hold": "anchors"}, tokens="base"),
    "anchors-adaptive": _variant(
        f"{HELD}, adaptive weight, target",
        {"weight": 2.0},  # to begin with
        usual=0.01,
        weights=(0.003, 0.01, 0.03),
        adapts=True,
    ),
}
"""By name."""

COMPARED = tuple(name for name, method in METHODS.items() if not method.variant)
"""The methods that are compared by default."""
