"""How well each measure of an aligned model tells harmful requests from others, before any training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.field.data import HARMFUL_SETS, Data, alpaca, digest, gsm8k, half, harmful_items
from benchmarks.field.settings import ANSWER_TOKENS
from benchmarks.field.start import Start
from benchmarks.tables import markdown
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import inspecting
from pact_plugin.judge import is_refusal
from pact_plugin.reference.pool import end_states

OTHERS = ("alpaca", "gsm8k", "overrefusal")
PAIRS = tuple(product(("advbench", "strongreject"), OTHERS))
"""Sets that a measure should tell apart."""
MEASURES = {
    "P(S)": "probability of the safety tokens at the first word",
    "odds": "P(S) / (P(S) + the largest other probability)",
    "probe": "logistic regression on the final hidden state at the prompt's end, fitted on the pool (spec C11)",
    "probe · P(S)": "their product",
    "probe > 1/2": "the probe as easing uses it: 1 or 0 (spec C2.6)",
    "answer": "the judge on the model's own answer of 24 tokens",
}


@dataclass(frozen=True)
class Measured:
    """A measure on every set.

    Attributes:
        means: The mean e of each set.
        aucs: Area under the ROC curve for each of `PAIRS`.
    """

    means: dict[str, float]
    aucs: dict[tuple[str, str], float]

    def plain(self) -> dict[str, dict[str, float]]:
        """As JSON values."""
        return {"means": self.means, "aucs": {f"{a} / {b}": value for (a, b), value in self.aucs.items()}}


def sets_of(data: Data, count: int) -> dict[str, list[str]]:
    """`count` prompts of each set, drawn by digest: none of the held-out half, on which results are reported."""
    found = {
        "advbench": [item.prompt for item in harmful_items(data, "target")],
        **{name: data.prompts(name) for name in ("strongreject", "donotanswer", "overrefusal")},
        "alpaca": [item.prompt for item in alpaca(data)],
        "gsm8k": [item.prompt for item in gsm8k(data, "gsm8k_train")],
    }
    return {
        name: sorted(filter(_may_choose, found[name]), key=digest)[:count]
        for name in (*HARMFUL_SETS, *OTHERS)
    }


def _may_choose(prompt: str) -> bool:
    return half(prompt) == "development"


def measured(
    start: Start, data: Data, count: int, *, answers: bool = True
) -> tuple[dict[str, Measured], dict[str, float]]:
    """Every measure, and the seconds that the parts take.

    Args:
        start: The aligned model.
        data: The files.
        count: Prompts of each set.
        answers: Whether it answers them, too.
    """
    sets, seconds = sets_of(data, count), {}
    pool = start.asked
    seconds["answering the pool, once"] = start.asked_seconds
    begun = time.perf_counter()
    log_odds, ids = pool.probe.log_odds, torch.tensor(start.tokens.positive.ids)
    seconds["fitting the probe, choosing tokens"] = time.perf_counter() - begun
    values: dict[str, dict[str, Tensor]] = {name: {} for name in MEASURES if answers or name != "answer"}
    begun = time.perf_counter()
    for name, prompts in sets.items():
        with inspecting(start.model):
            hidden = end_states(start.source, user_prompts(start.tokenizer, prompts))
            mass, other = _first(start, hidden, ids)
        harm = log_odds(hidden).sigmoid()
        values["P(S)"][name], values["odds"][name] = mass, mass / (mass + other)
        values["probe"][name], values["probe · P(S)"][name] = harm, harm * mass
        values["probe > 1/2"][name] = (harm > 0.5).float()
    seconds["reading the sets"] = time.perf_counter() - begun
    if answers:
        begun = time.perf_counter()
        for name, prompts in sets.items():
            said = [start.tokenizer.decode(one) for one in start.answers(prompts, ANSWER_TOKENS)]
            values["answer"][name] = torch.tensor([float(is_refusal(one)) for one in said])
        seconds["answering the sets"] = time.perf_counter() - begun
    return {name: _measured(of_sets) for name, of_sets in values.items()}, seconds


def _first(start: Start, hidden: Float[Tensor, "N d"], ids: Tensor) -> tuple[Tensor, Tensor]:
    """P(S) and the largest probability outside of S."""
    mass, other = [], []
    for states in hidden.split(64):
        p = start.source.project(states.to(start.model.dtype)).float().softmax(-1)
        mass.append(p[:, ids].sum(-1))
        other.append(p.index_fill(1, ids, 0.0).amax(-1))
    return torch.cat(mass), torch.cat(other)


def _measured(of_sets: Mapping[str, Tensor]) -> Measured:
    return Measured(
        {name: float(values.mean()) for name, values in of_sets.items()},
        {(a, b): _auc(of_sets[a].tolist(), of_sets[b].tolist()) for a, b in PAIRS},
    )


def _auc(harmful: Sequence[float], others: Sequence[float]) -> float:
    kinds = [1] * len(harmful) + [0] * len(others)
    return float(roc_auc_score(kinds, [*harmful, *others]))


def table(found: Mapping[str, Measured]) -> str:
    """As Markdown."""
    heads = [
        "measure",
        *(f"{name}, mean" for name in (*HARMFUL_SETS, *OTHERS)),
        *(f"{a} / {b}" for a, b in PAIRS),
    ]
    rows = [
        [name, *(f"{value:.2f}" for value in one.means.values()), *(f"{v:.3f}" for v in one.aucs.values())]
        for name, one in found.items()
    ]
    return markdown(heads, rows)
