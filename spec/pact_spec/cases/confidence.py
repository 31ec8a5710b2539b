"""Cases of `confidence_divergence`."""

from __future__ import annotations

from typing import Any

import numpy as np

from pact_spec import reference
from pact_spec.cases import invalid, logits
from pact_spec.vectors import Case


def _case(name: str, clause: str, description: str, *arrays: Any, resolved: bool = True) -> Case:
    """Where not `resolved`: in float64 alone, and by the value alone."""
    names = ("student_logprobs", "reference_logprobs", "student_log_rest", "reference_log_rest")
    arguments = {
        key: np.array(x, dtype=float) for key, x in zip(names, arrays, strict=False) if x is not None
    }
    expected = {"value": reference.confidence_divergence(**arguments)}
    if resolved:
        expected["gradient"] = reference.confidence_gradient(**arguments)
    return Case(
        "confidence_divergence",
        name,
        clause,
        description,
        arguments,
        expected=expected,
        float64_only=not resolved,
    )


def cases() -> list[Case]:
    """Every case of clause C2."""
    ids = [1, 4, 5]
    student, student_rest = _split(logits(1, 4, 9), ids)
    aligned, aligned_rest = _split(logits(2, 4, 9), ids)
    redistributed = logits(1, 4, 9)
    redistributed[:, [0, 2, 3, 6, 7, 8]] = np.roll(redistributed[:, [0, 2, 3, 6, 7, 8]], 1, axis=-1)
    moved, moved_rest = _split(redistributed, ids)
    one, one_rest = _split(logits(3, 4, 6), [2])
    one_aligned, one_aligned_rest = _split(logits(4, 4, 6), [2])
    most, most_rest = _split(logits(5, 4, 6), [0, 1, 2, 4, 5])
    most_aligned, most_aligned_rest = _split(logits(6, 4, 6), [0, 1, 2, 4, 5])
    tiny = np.log([[1e-30, 2e-20, 1e-10]])
    tiny_rest = np.array([np.log1p(-np.exp(tiny).sum())])
    all_on_s = np.log([[0.75, 0.25 - 1e-12, 1e-30]])
    grid = _split(logits(7, 2, 3, 9), ids) + _split(logits(8, 2, 3, 9), ids)
    inf = float("inf")
    build = _case
    return [
        build("remainder-given", "C2.1", "Random logits; both remainders given.",
              student, aligned, student_rest, aligned_rest),
        build("remainder-derived", "C2.2", "The same, both remainders derived.", student, aligned),
        build("remainder-of-student-derived", "C2.2", "The same, the student's remainder derived.",
              student, aligned, None, aligned_rest),
        build("remainder-of-reference-derived", "C2.2", "The same, the reference's remainder derived.",
              student, aligned, student_rest),
        build("two-axes-of-positions", "P10", "Positions [2, 3].", grid[0], grid[2], grid[1], grid[3]),
        build("single-position", "P10", "No axis of positions.",
              student[0], aligned[0], student_rest[0], aligned_rest[0]),
        build("no-position", "P10", "An empty batch [0, 3].", np.empty((0, 3)), np.empty((0, 3))),
        build("at-the-reference", "P2", "The student is the reference: zero, with zero gradient.",
              aligned, aligned, aligned_rest, aligned_rest),
        build("rest-redistributed", "P4", "As remainder-given, with the other tokens' logits permuted.",
              moved, aligned, moved_rest, aligned_rest),
        build("permuted", "P6", "As remainder-given, with S in another order.",
              student[:, ::-1], aligned[:, ::-1], student_rest, aligned_rest),
        build("one-safety-token", "P9", "K = 1.", one, one_aligned, one_rest, one_aligned_rest),
        build("all-but-one-token", "P3", "K = V - 1: D is the KL divergence over the vocabulary.",
              most, most_aligned, most_rest, most_aligned_rest),
        build("student-at-1e-30", "P9", "The student's probabilities on S from 1e-30 to 1e-10.",
              tiny, aligned[:1], tiny_rest, aligned_rest[:1]),
        build("reference-at-1e-30", "P9", "The reference's probabilities on S from 1e-30 to 1e-10.",
              student[:1], tiny, student_rest[:1], tiny_rest),
        build("student-all-on-s", "P9", "The student leaves 1e-12 to other tokens.",
              all_on_s, aligned[:1], [np.log(1e-12)], aligned_rest[:1]),
        build("reference-all-on-s", "P9", "The reference leaves 1e-12 to other tokens.",
              student[:1], all_on_s, student_rest[:1], [np.log(1e-12)]),
        build("reference-zero", "C1.4", "0 log 0 = 0: the reference rules a safety token and the rest out.",
              student[:1], [[np.log(0.25), np.log(0.75), -inf]], student_rest[:1], [-inf]),
        build("both-zero", "C1.4", "0 log 0 = 0: neither gives a safety token anything.",
              [[np.log(0.5), -inf, -inf]], [[np.log(0.25), -inf, -inf]], [np.log(0.5)], [np.log(0.75)]),
        build("derived-small-remainder", "C2.2", "One token holds all but 1e-9; the remainder is derived.",
              [[np.log1p(-1e-9), -50.0, -60.0]], aligned[:1], resolved=False),
        build("derived-unresolved-remainder", "C2.2", "S holds everything: the remainder is the epsilon.",
              np.log([[0.5, 0.25, 0.25]]), aligned[:1], resolved=False),
        *invalid("confidence_divergence", {"student_logprobs": student, "reference_logprobs": aligned}, [
            ("reference-k", "C1.5", "The reference has another K.",
             {"reference_logprobs": aligned[:, :2]}, "reference_logprobs"),
            ("reference-positions", "C1.5", "The reference has fewer positions; it is not broadcast.",
             {"reference_logprobs": aligned[:1]}, "reference_logprobs"),
            ("reference-rank", "C1.5", "The reference lacks the axis of positions.",
             {"reference_logprobs": aligned[0]}, "reference_logprobs"),
            ("no-safety-token", "C1.5", "K = 0.",
             {"student_logprobs": student[:, :0], "reference_logprobs": aligned[:, :0]}, "student_logprobs"),
            ("scalar", "C1.5", "No axis of safety tokens.",
             {"student_logprobs": student[0, 0], "reference_logprobs": aligned[0, 0]}, "student_logprobs"),
            ("student-rest", "C1.5", "The student's remainder has too few positions.",
             {"student_log_rest": student_rest[:3]}, "student_log_rest"),
            ("reference-rest", "C1.5", "The reference's remainder has an axis too many.",
             {"reference_log_rest": aligned_rest[:, None]}, "reference_log_rest"),
        ]),
    ]  # fmt: skip


def _split(logits: np.ndarray, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits over the vocabulary -> log-probabilities of the safety tokens, and of all others together."""
    others = [token for token in range(logits.shape[-1]) if token not in ids]
    largest = logits.max(axis=-1, keepdims=True)
    log_total = largest[..., 0] + np.log(np.exp(logits - largest).sum(axis=-1))
    largest = logits[..., others].max(axis=-1, keepdims=True)
    log_others = largest[..., 0] + np.log(np.exp(logits[..., others] - largest).sum(axis=-1))
    return logits[..., ids] - log_total[..., None], log_others - log_total
