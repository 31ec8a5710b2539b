"""What `pact: true` chooses of an aligned model, and from what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.field.along import POSITIONS, summary
from benchmarks.field.measure import READ_AT_A_TIME
from benchmarks.field.start import Start
from pact_plugin.audit.reading import read
from pact_plugin.config import Anchors
from pact_plugin.data.generation import inspecting
from pact_plugin.data.prompts import KINDS
from pact_plugin.terms.anchor_prompts import anchor_prompts, anchors_from

AT_MOST = 100
"""Refusals along which P(S) is read."""


@dataclass(frozen=True)
class Chosen:
    """What is chosen of a model.

    Attributes:
        asked: Prompts of the pool, of each kind.
        rightly: Those that are answered as their kind asks for: refused, or helped with.
        anchors: Anchors of each kind.
        tokens: The safety tokens, the most frequent first.
        along: P(S) before each of the first tokens of the model's refusals of the pool, as `along` has it.
        auc: Of the probe that easing uses; each prompt of the pool left out once.
    """

    asked: dict[str, int]
    rightly: dict[str, int]
    anchors: dict[str, int]
    tokens: list[str]
    along: list[dict[str, float]]
    auc: float

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def chosen(start: Start) -> Chosen:
    """What is chosen by default."""
    settings, pool, tokens = Anchors(), start.asked, start.tokens.positive
    refusals = list(pool.pairs("harmful").values())[:AT_MOST]
    with inspecting(start.model):
        pairs = [(prompt, answer[:POSITIONS]) for prompt, answer in refusals]
        along = read(start.model, pairs, tokens.ids, batch_size=READ_AT_A_TIME)
    anchors = anchors_from(settings, pool.of(anchor_prompts(settings)))
    return Chosen(
        asked={kind: sum(one.kind == kind for one in pool.asked) for kind in KINDS},
        rightly={kind: len(pool.pairs(kind)) for kind in KINDS},
        anchors={kind: len(found) for kind, found in anchors.items()},
        tokens=list(tokens.tokens),
        along=summary([one.mass for one in along]),
        auc=pool.probe.auc,
    )


def line(model: str, found: Chosen) -> str:
    """As a row of a table: refused, helped with, anchors, the probe's AUC, P(S) at some tokens, safety tokens."""
    of = [f"{found.rightly[kind]} of {found.asked[kind]}" for kind in ("harmful", "benign")]
    anchors = f"{found.anchors['harmful']} / {found.anchors['benign']}"
    along = [f"{found.along[at]['mean']:.2f}" if at < len(found.along) else "" for at in (0, 1, 3, 7, 15)]
    tokens = " ".join(f"`{one}`" for one in found.tokens)
    return f"| {' | '.join([model, *of, anchors, f'{found.auc:.3f}', *along, tokens])} |"


HEAD = """| model | harmful prompts refused | benign ones helped with | anchors of each kind | AUC of the probe | \
P(S) at the 1st token | 2nd | 4th | 8th | 16th | safety tokens |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"""
