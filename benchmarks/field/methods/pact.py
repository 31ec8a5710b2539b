"""pact-plugin itself, through its public API, with settings of its own; the strength is its `weight`.

loss = task cross-entropy + what `PactConstraint.loss` adds (spec/PACT.md, clauses C2 to C4 and C10)

- *pact*: `pact: true`, whatever the default is in this version.
- *anchors*: anchors alone; what their divergence over safety tokens does beside *replay* and *replay-kl*.
- *data-hold*, *data-hold-eased*, *anchors-data-hold*: the constraint at the data's own positions, its own easing.
- *published*: the objective of the authors' code (clause C3; arXiv 2603.07445), as pact-plugin implements it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from benchmarks.field.encoding import Batch
from benchmarks.field.methods.base import Method, Objective, Trainee
from pact_plugin import PactConfig, PactConstraint, Step


class Pact(Objective):
    """A constraint beside the task's loss."""

    def __init__(self, config: Mapping[str, Any], trainee: Trainee, strength: float) -> None:
        config = budgeted(config, trainee.start.sizes.per_step)
        settings = {"safety_tokens": trainee.start.tokens, "weight": strength, **config}
        if config.get("easing", True) or config["anchors"]:
            trainee.asked()  # into the folder of the runs, where the constraint finds it
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.constraint = PactConstraint(trainee.model, trainee.start.tokenizer, PactConfig(**settings))
        self.warned = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
        self._before = trainee.seed * trainee.start.sizes.steps

    def watch(self) -> AbstractContextManager[None]:
        """See `PactConstraint.watch`."""
        return self.constraint.watch()

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""]:
        """See `PactConstraint.loss`; easing is in it, as what it takes off the task's loss.

        The anchors of a seed go on where those of the seed before ended: a run here holds a few of them alone.
        """
        return self.constraint.loss(batch, Step(1 + self._before + number))

    def notes(self) -> dict[str, Any]:
        """Means over the run, all settings, and warnings."""
        summary = self.constraint.config.summary()
        return {"pact": self.constraint.metrics(), "config": summary, "warnings": self.warned}


def configured(title: str, config: Mapping[str, Any], treatment: str = "none") -> Method:
    """pact-plugin with some settings; their weight is the usual strength."""
    rest = {key: value for key, value in config.items() if key != "weight"}
    strength = float(config["weight"])
    return Method(title, partial(Pact, rest), strength, treatment=treatment, config=dict(rest))


def budgeted(config: Mapping[str, Any], per_step: int) -> dict[str, Any]:
    """Settings whose anchors are as many a step as the prompts of other methods, unless they say how many."""
    anchors = config.get("anchors", True)
    given = {} if anchors is True else anchors
    return {**config, "anchors": anchors and {"per_step": per_step, **given}}


def resolved(config: Mapping[str, Any], per_step: int) -> dict[str, Any]:
    """All settings, those of this version's default included; without weight and tokens."""
    summary = PactConfig(**budgeted(config, per_step)).summary()
    return {key: value for key, value in summary.items() if key not in ("weight", "safety_tokens")}


PACT = {"pact": configured("PACT, the default", {"weight": PactConfig().weight})} | {
    name: configured(title, {"weight": 1, "easing": False, "anchors": False, **config})
    for name, title, config in (
        ("anchors", "anchors", {"anchors": True}),
        ("data-hold", "data hold", {"hold_data": True}),
        ("data-hold-eased", "data hold, easing", {"hold_data": True, "easing": True}),
        ("anchors-data-hold", "anchors, data hold", {"hold_data": True, "anchors": True}),
        ("published", "published PACT", {"advanced": {"published": True}}),
    )
}
