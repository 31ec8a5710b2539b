"""Cases of `safety_direction`."""

from __future__ import annotations

from typing import Any

import numpy as np

from pact_spec import reference
from pact_spec.cases import invalid, logits
from pact_spec.vectors import Case


def _case(
    name: str, clause: str, description: str, aligned: list[Any], contrast: list[Any], top_k: int
) -> Case:
    ids, weights = reference.safety_direction(aligned, contrast, top_k=top_k)
    return Case(
        "safety_direction",
        name,
        clause,
        description,
        {"aligned_logits": aligned, "contrast_logits": contrast},
        {"top_k": top_k},
        {"ids": ids, "weights": weights},
    )


def cases() -> list[Case]:
    """Every case of clause C8."""
    aligned = [logits(seed, rows, 10) for seed, rows in ((31, 3), (32, 1), (33, 4))]
    contrast = [logits(seed, rows, 10) for seed, rows in ((41, 3), (42, 1), (43, 4))]
    benign = [logits(seed, rows, 10) for seed, rows in ((51, 5), (52, 2))]
    inf = float("inf")
    masked = [np.where(np.arange(10) == 7, -inf, one) for one in aligned]
    build = _case
    usual = {"aligned_logits": aligned, "contrast_logits": contrast}
    return [
        build("paired", "C8.2", "Another model on the same answers.", aligned, contrast, 4),
        build("unpaired", "C8.3", "Other answers: other numbers of prompts.", aligned, benign, 4),
        build("two-tokens", "C8.2", "The fewest: weights of +-1 / sqrt 2.", aligned, contrast, 2),
        build("whole-vocabulary", "C8.2", "Every token is kept.", aligned, contrast, 10),
        build("one-prompt", "C8.2", "One prompt of one position.", aligned[1:2], contrast[1:2], 3),
        build("permuted-prompts", "P18", "As paired, in another order.", aligned[::-1], contrast[::-1], 4),
        build("constant-added", "P19", "As paired, with a constant added to every logit.",
              [one + 8 for one in aligned], contrast, 4),
        build("masked-token", "C1.4", "A token with a logit of minus infinity.", masked, contrast, 4),
        build("ties", "C8.2", "Of equally probable tokens, the lower ids are kept.",
              [np.array([[0.0, 2, 1, 1, 1, -1]])], [np.array([[0.0, 1, 2, 0, 1, -1]])], 3),
        *invalid("safety_direction", usual, [
            ("no-prompt", "C1.5", "No aligned prompt.", {"aligned_logits": []}, "aligned_logits"),
            ("no-contrast", "C1.5", "No contrast prompt.", {"contrast_logits": []}, "contrast_logits"),
            ("no-position", "C1.5", "A prompt without positions.",
             {"aligned_logits": [aligned[0], np.empty((0, 10))]}, "aligned_logits"),
            ("rank", "C1.5", "Logits without the axis of positions.",
             {"contrast_logits": [one[0] for one in contrast]}, "contrast_logits"),
            ("vocabularies-within", "C1.5", "Two prompts with different vocabularies.",
             {"aligned_logits": [aligned[0], aligned[1][:, :9]]}, "aligned_logits"),
            ("vocabularies-between", "C1.5", "The sides have different vocabularies.",
             {"contrast_logits": [one[:, :9] for one in contrast]}, "contrast_logits"),
            ("no-difference", "C8.4", "The sides are the same.",
             {"contrast_logits": aligned}, "contrast_logits"),
        ], top_k=4),
        *(
            Case("safety_direction", f"invalid-top-k-{top_k}", "C8.4", f"top_k = {top_k} of 10 tokens.",
                 usual, {"top_k": top_k}, argument="top_k")
            for top_k in (0, 1, 11)
        ),
    ]  # fmt: skip
