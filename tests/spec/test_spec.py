"""The specification's text and its reference: clauses are numbered and tested, and formulas agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from pact_spec import reference
from pact_spec.vectors import load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "spec/PACT.md").read_text(encoding="utf-8")
DEFINED = set(re.findall(r"\*\*([CP][0-9.]+)\*\*", TEXT))


# --- the text ---


def test_clauses_are_numbered_without_gaps():
    invariants = sorted(int(name[1:]) for name in DEFINED if name[0] == "P")
    assert invariants == list(range(1, len(invariants) + 1))
    chapters = sorted({int(name[1:].partition(".")[0]) for name in DEFINED if name[0] == "C"})
    assert chapters == list(range(1, len(chapters) + 1))
    for chapter in chapters:
        numbers = sorted(int(name.split(".")[1]) for name in DEFINED if name.startswith(f"C{chapter}."))
        assert numbers == list(range(1, len(numbers) + 1)), f"C{chapter}"


def test_every_clause_that_is_referred_to_exists():
    code = [path for folder in ("spec/pact_spec", "pact_plugin") for path in ROOT.glob(f"{folder}/**/*.py")]
    sources = [TEXT, *(path.read_text(encoding="utf-8") for path in code)]
    chapters = {name.split(".")[0] for name in DEFINED}
    for source in sources:
        for name in re.findall(r"\b(?:C[1-9][0-9]?(?:\.[0-9]+)?|P[0-9]+)\b", source):
            assert name in DEFINED | chapters, name


def test_vectors_name_clauses_that_exist():
    assert {case.clause for case in load()} <= DEFINED


def test_every_invariant_has_a_test_that_names_it():
    tests = [path for folder in ("spec", "core") for path in ROOT.glob(f"tests/{folder}/test_*.py")]
    named = set()
    for path in tests:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                named |= {f"P{number}" for number in re.findall(r"_p([0-9]+)_", function.name)}
    assert {name for name in DEFINED if name[0] == "P"} <= named


# --- the reference ---


def test_reference_is_independent():
    for path in ROOT.glob("spec/pact_spec/**/*.py"):
        assert not re.search(r"^\s*(import|from) pact_plugin", path.read_text(encoding="utf-8"), re.MULTILINE)


def numerical_gradient(function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[index] = step
        result[index] = (function(x + move).sum() - function(x - move).sum()) / (2 * step)
    return result


def test_closed_form_of_the_confidence_gradient_is_the_numerical_one_c2_4():
    rng = np.random.default_rng(0)
    buckets, aligned = rng.normal(size=(2, 4)), np.log(reference.softmax(rng.normal(size=(2, 4))))

    def of_buckets(logits):
        p = np.log(reference.softmax(logits))
        return reference.confidence_divergence(p[:, :3], aligned[:, :3], p[:, 3], aligned[:, 3])

    p = np.log(reference.softmax(buckets))
    found = reference.confidence_gradient(p[:, :3], aligned[:, :3], p[:, 3], aligned[:, 3])
    np.testing.assert_allclose(found, numerical_gradient(of_buckets, buckets), atol=1e-8)


def test_closed_form_of_the_published_gradient_is_the_numerical_one_c3_5():
    rng = np.random.default_rng(1)
    student, *others = rng.normal(size=(3, 2, 4))
    arguments = (*others, [0.5, -1.0, 0.0, 2.0], [0, 11])
    found = reference.published_gradient(student, *arguments)
    numerical = numerical_gradient(lambda z: reference.published_divergence(z, *arguments), student)
    np.testing.assert_allclose(found, numerical, atol=1e-8)


@pytest.mark.parametrize(
    ("probabilities", "top_p", "n"),
    [
        ([0.5, 0.3, 0.2], 0.5, 1),
        ([0.2, 0.5, 0.3], 0.6, 2),
        ([0.5, 0.5], 1.0, 2),
        ([0.3, 0.3], 0.9, 2),
        ([1.0], 0.1, 1),
    ],
)
def test_nucleus_c3_1(probabilities, top_p, n):
    assert reference.nucleus_size(probabilities, top_p) == n
