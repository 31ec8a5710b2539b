"""Random problems, and the array libraries and types on which the losses' tests run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import settings
from hypothesis import strategies as st
from pact_spec.backends import Backend, backend
from pact_spec.reference import softmax

# Compiling takes nearly all the time of these tests.
jax.config.update("jax_disable_most_optimizations", True)

TYPES = ("float64", "float32", "bfloat16")
UNCOMPILED = [(library, dtype) for library in ("numpy", "torch") for dtype in TYPES]
COMPILED = [("jax", dtype) for dtype in TYPES]
# JAX in float64 has its own compilations: it runs the vectors, the gradients and the agreement with the reference.
KINDS = [*UNCOMPILED, ("jax", "float32"), ("jax", "bfloat16")]
EXACT = [("numpy", "float64")]
"""Where libraries and types cannot differ, as their agreement with the reference is tested."""
DIFFERENTIABLE = [kind for kind in UNCOMPILED + COMPILED if kind[0] != "numpy"]

SETTINGS = settings(max_examples=10, deadline=None, derandomize=True, database=None)

# Positions, vocabulary, safety tokens: fixed in most tests, because JAX compiles anew for each shape.
SHAPE = (3, 6, 2)
usual_shape = st.just(SHAPE)

any_shape = st.integers(2, 9).flatmap(
    lambda v: st.tuples(st.integers(0, 4), st.just(v), st.integers(1, v - 1))
)


@contextlib.contextmanager
def using(kind: tuple[str, str]) -> Iterator[Backend]:
    """A back end; JAX in float64 needs its 64-bit mode, which is left on nowhere else."""
    with jax.enable_x64(kind == ("jax", "float64")):
        yield backend(*kind)


def on(kinds: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Run a test on each kind, given as its argument `kind`."""
    return pytest.mark.parametrize("kind", kinds, ids=["-".join(kind) for kind in kinds])


def rounding(kind: tuple[str, str]) -> float:
    """Relative error to grant where inputs of order ten are rounded to the type, then computed with."""
    return {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.05}[kind[1]]


def arithmetic(kind: tuple[str, str]) -> float:
    """Relative error to grant the computation alone, which is in float32 at least."""
    return 1e-10 if kind[1] == "float64" else 1e-4


@dataclass(frozen=True)
class Problem:
    """Logits of both models over a vocabulary, and the safety tokens."""

    student: np.ndarray
    reference: np.ndarray
    ids: list[int]

    @property
    def others(self) -> list[int]:
        return [token for token in range(self.student.shape[-1]) if token not in self.ids]

    def kl(self) -> np.ndarray:
        """KL(p_ref || p) over the whole vocabulary."""
        aligned, student = softmax(self.reference), softmax(self.student)
        return np.sum(aligned * (np.log(aligned) - np.log(student)), axis=-1)

    def gradient(self) -> np.ndarray:
        """Of the sum of D with respect to the student's logits, in closed form (C2.4)."""
        aligned, student = softmax(self.reference), softmax(self.student)
        ratio = aligned[..., self.others].sum(axis=-1) / student[..., self.others].sum(axis=-1)
        result = student * (1 - ratio)[..., None]
        result[..., self.ids] = (student - aligned)[..., self.ids]
        return result


@st.composite
def problems(
    draw: st.DrawFn, largest: float = 6.0, shape: st.SearchStrategy[tuple[int, int, int]] = usual_shape
) -> Problem:
    n, v, k = draw(shape)
    logits = hnp.arrays(np.float64, (n, v), elements=st.floats(-largest, largest, width=16))
    ids = draw(st.permutations(range(v)))[:k]
    return Problem(draw(logits), draw(logits), list(ids))


@st.composite
def published_problems(
    draw: st.DrawFn, shape: st.SearchStrategy[tuple[int, int, int]] = usual_shape
) -> dict[str, np.ndarray]:
    n, v, _ = draw(shape)
    k = v - 1
    logits = hnp.arrays(np.float64, (n, k), elements=st.floats(-6, 6, width=16))
    weights = hnp.arrays(np.float64, k, elements=st.floats(-2, 2, width=16))
    position = hnp.arrays(np.float64, n, elements=st.integers(0, 40))
    names = ("student", "reference", "reference_post")
    return {name: draw(logits) for name in names} | {
        "weights": draw(weights.filter(lambda w: w.max() > 0.01)),
        "position": draw(position),
    }


gate_settings = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.5, 4),
        "top_p": st.floats(0.05, 1),
        "alpha": st.floats(-5, 5),
        "bias": st.floats(-0.5, 0.5),
        "gate_temperature": st.floats(0.5, 3),
        "prefix": st.integers(0, 12),
        "decay": st.sampled_from([0.0, 1.0, 8.0]),
        "boost": st.floats(0, 2),
    },
)


def nucleus_is_clear(problem: dict[str, np.ndarray], options: dict[str, float], margin: float = 1e-4) -> bool:
    """Whether rounding cannot change the gate's nucleus: no cumulative sum is close to `top_p`."""
    top_p, temperature = options.get("top_p", 0.9), options.get("gate_temperature", 1.0)
    for name in ("student", "reference_post"):
        falling = -np.sort(-softmax(problem[name] / temperature), axis=-1)
        if (np.abs(np.cumsum(falling, axis=-1)[..., :-1] - top_p) < margin).any():
            return False
    return True


def rounded(backend: Backend, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: backend.numpy(backend.array(array)) for name, array in arrays.items()}


def split(logits: Any, ids: list[int]) -> tuple[Any, Any]:
    """[..., V] logits of any library -> log p [..., K] of the tokens, and log r [...], in the type given.

    Computed in float32 at least, as a model's head does (C6.2).
    """
    xp = array_namespace(logits)
    wide = xp.astype(logits, xp.result_type(logits.dtype, xp.float32))
    others = [token for token in range(logits.shape[-1]) if token not in ids]
    inside = xp.take(wide, xp.asarray(ids), axis=-1)
    outside = xp.take(wide, xp.asarray(others), axis=-1)
    total = logsumexp(xp, wide)
    narrow = logits.dtype
    log_p = xp.astype(inside - total[..., None], narrow)
    return log_p, xp.astype(logsumexp(xp, outside) - total, narrow)


def logsumexp(xp: Any, logits: Any) -> Any:
    largest = xp.max(logits, axis=-1, keepdims=True)
    return largest[..., 0] + xp.log(xp.sum(xp.exp(logits - largest), axis=-1))
