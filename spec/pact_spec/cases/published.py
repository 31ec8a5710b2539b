"""Cases of `published_divergence`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pact_spec import reference
from pact_spec.cases import invalid, logits
from pact_spec.vectors import Case


def _case(name: str, clause: str, description: str, arguments: Mapping[str, Any], **options: float) -> Case:
    arguments = {key: np.array(x, dtype=float) for key, x in arguments.items()}
    arrays = list(arguments.values())
    expected = {
        "value": reference.published_divergence(*arrays, **options),
        "gradient": reference.published_gradient(*arrays, **options),
    }
    return Case("published_divergence", name, clause, description, arguments, options, expected)


def cases() -> list[Case]:
    """Every case of clause C3."""
    names = ("student", "reference", "reference_post")
    usual = {name: logits(seed, 6, 5) for seed, name in enumerate(names, 11)}
    usual |= {"weights": np.array([0.5, -0.25, 1.0, 0.125, -1.5]), "position": np.array([0, 1, 2, 9, 12, 40])}
    one = {name: usual[name][:, :1] for name in names} | {
        "weights": usual["weights"][:1],
        "position": usual["position"],
    }
    grid = {name: logits(seed, 2, 3, 5) for seed, name in enumerate(names, 21)}
    grid |= {"weights": usual["weights"], "position": np.array([[0, 1, 2], [0, 1, 2]])}
    single = {name: usual[name][0] for name in names} | {
        "weights": usual["weights"],
        "position": np.array(3),
    }
    empty = {name: np.empty((0, 5)) for name in names} | {
        "weights": usual["weights"],
        "position": np.empty(0),
    }
    positive = usual | {"weights": np.abs(usual["weights"])}
    on_target = positive | {"student": 2 * np.log(reference.published_target(**positive, boost=0.0))}
    build = _case
    inf = float("inf")
    masked = {name: np.where(np.arange(5) == 2, -inf, usual[name]) for name in names}
    masked["reference_post"][2:, 0] = -inf
    return [
        build("defaults", "C3.4", "Random logits, default settings.", usual),
        build("two-axes-of-positions", "P10", "Positions [2, 3].", grid),
        build("single-position", "P10", "No axis of positions.", single),
        build("no-position", "P10", "An empty batch [0, 5].", empty),
        build("one-safety-token", "C3.4", "K = 1: the softmax is constant, so zero.", one),
        build("large-top-p", "C3.1", "The nucleus holds nearly everything.", usual, top_p=0.999),
        build("small-top-p", "C3.1", "The nucleus is one token everywhere.", usual, top_p=0.05),
        build("gate-temperature", "C3.1", "The gate counts at T_g = 3.", usual, gate_temperature=3.0),
        build("steep-gate", "C3.2", "A steep gate with an offset.", usual, alpha=40.0, bias=0.1),
        build("late-prefix", "C3.2", "The gate does not decay before position 20.", usual, prefix=20),
        build("cut-off", "C3.2", "decay = 0: the gate closes at the prefix.", usual, decay=0.0, prefix=2),
        build("slow-decay", "C3.2", "The gate decays from the first token on.", usual, decay=30.0, prefix=0),
        build("strong-gate", "C3.2", "A boost above 1 carries the mixture past its ends.", usual, boost=2.5),
        build("no-gate", "C3.3", "boost = 0: the target is made of the reference alone.", usual, boost=0.0),
        build("temperature", "C3.4", "T = 0.5.", usual, temperature=0.5),
        build("all-weights-positive", "C3.3", "Every token is held.", positive),
        build("one-weight-positive", "C3.3", "The target is one token; 0 log 0 = 0 for the others.",
              usual | {"weights": np.array([-0.5, 0.0, 0.75, -1.0, -0.25])}),
        build("constant-added", "P13", "As defaults, with a constant added to each position's logits.",
              usual | {name: usual[name] + np.arange(6.0)[:, None] * 4 for name in names}),
        build("permuted", "P14", "As defaults, with S in another order.",
              {name: x if name == "position" else x[..., ::-1] for name, x in usual.items()}),
        build("at-the-target", "P12", "Zero where the student's distribution is q.", on_target, boost=0.0),
        build("at-the-reference", "P12", "Not zero where the student is both references.",
              usual | {"student": usual["reference"], "reference_post": usual["reference"]}),
        build("extreme-logits", "P9", "Logits of +-500.",
              usual | {name: np.sign(usual[name]) * 500 for name in names}),
        build("masked-tokens", "C1.4", "One token is masked everywhere, another in z_post where the gate is 0.",
              usual | masked, decay=0.0, prefix=2),
        build("masked-strong-gate", "C1.4", "One token is masked everywhere, and the boost is above 1.",
              usual | {name: np.where(np.arange(5) == 2, -inf, usual[name]) for name in names}, boost=2.5),
        *invalid("published_divergence", usual, [
            ("reference-k", "C1.5", "The reference has another K.",
             {"reference": usual["reference"][:, :4]}, "reference"),
            ("post-positions", "C1.5", "The prompt-free reference has fewer positions.",
             {"reference_post": usual["reference_post"][:1]}, "reference_post"),
            ("weights-k", "C1.5", "Too few weights.", {"weights": usual["weights"][:4]}, "weights"),
            ("position-shape", "C1.5", "Too few indices.", {"position": usual["position"][:5]}, "position"),
            ("no-safety-token", "C1.5", "K = 0.",
             {name: usual[name][:, :0] for name in names} | {"weights": np.empty(0)}, "student"),
            ("no-positive-weight", "C3.6", "No weight is positive.", {"weights": -np.ones(5)}, "weights"),
            ("all-weights-zero", "C3.6", "Every weight is zero.", {"weights": np.zeros(5)}, "weights"),
            ("infinite-weight", "C3.6", "A weight is infinite.",
             {"weights": np.array([1.0, inf, 0.0, 0.0, 0.0])}, "weights"),
        ]),
        *(
            Case("published_divergence", f"invalid-{name.replace('_', '-')}-{i}", "C3.6",
                 f"{name} = {value} is out of range.", usual, {name: value}, argument=name)
            for name, values in {
                "temperature": (0.0, -1.0, inf), "gate_temperature": (0.0,), "top_p": (0.0, 1.5),
                "decay": (-1.0,), "prefix": (-1.0,), "alpha": (inf,), "bias": (-inf,), "boost": (inf,),
            }.items()
            for i, value in enumerate(values)
        ),
    ]  # fmt: skip
