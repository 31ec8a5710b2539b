"""A constraint with three anchors beside each step of a bespoke loop."""

from __future__ import annotations

from typing import Any

from loop import FEW_ANCHORS, TOKENIZER, settings

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.terms.step import Step

WEIGHT = 1.5
FIFTH = Step(5)


def config(store: Any = None, anchors: Any = True, **changes: Any) -> PactConfig:
    """Three anchors of few beside each step, unless other settings of theirs are given."""
    few = FEW_ANCHORS | {"per_step": 3, "tokens": 4}
    block = few if anchors is True else anchors and few | anchors
    return settings(store=store, **({"weight": WEIGHT, "anchors": block} | changes))


def built(model, *given: Any, **changes: Any) -> PactConstraint:
    return PactConstraint(model, TOKENIZER, config(*given, **changes))
