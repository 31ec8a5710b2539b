"""The specification's own parts: text, reference, vectors and the runner."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pact_spec
import pytest
from pact_spec import reference
from pact_spec.backends import JaxBackend
from pact_spec.conformance import run
from pact_spec.generate import CASES
from pact_spec.vectors import FOLDER, FUNCTIONS, dump, load
from strategies import UNCOMPILED, on, using

import pact_plugin

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "spec/PACT.md").read_text(encoding="utf-8")
DEFINED = set(re.findall(r"\*\*([CP][0-9.]+)\*\*", TEXT))


# The text


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


def test_every_invariant_has_a_test_that_names_it():
    tests = [path for folder in ("spec", "core") for path in ROOT.glob(f"tests/{folder}/test_*.py")]
    named = set()
    for path in tests:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                named |= {f"P{number}" for number in re.findall(r"_p([0-9]+)_", function.name)}
    assert {name for name in DEFINED if name[0] == "P"} <= named


# The reference


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


# The vectors


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vectors_follow_the_schema(function):
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads((FOLDER / f"{function}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(content)
    assert content["function"] == function
    names = [case["name"] for case in content["cases"]]
    assert len(set(names)) == len(names)
    assert {case["valid"] for case in content["cases"]} == {True, False}


def test_vectors_name_clauses_that_exist():
    assert {case.clause for case in load()} <= DEFINED


def test_vectors_are_compact():
    assert sum((FOLDER / f"{function}.json").stat().st_size for function in FUNCTIONS) < 200_000


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vectors_are_what_the_generator_writes(function):
    def same(found, wanted):
        assert type(found) is type(wanted)
        if isinstance(found, dict):
            assert found.keys() == wanted.keys()
            for key in found:
                same(found[key], wanted[key])
        elif isinstance(found, list):
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                same(one, other)
        elif isinstance(found, float):  # processors differ in the last digits of exp
            assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15)
        else:
            assert found == wanted

    stored = json.loads((FOLDER / f"{function}.json").read_text(encoding="utf-8"))
    same(json.loads(dump(function, CASES[function])), stored)


# The runner

PACT = {name: getattr(pact_plugin, name) for name in FUNCTIONS}


def failures(implementation, kind=("numpy", "float64")) -> list[str]:
    with using(kind) as backend:
        return [
            f"{outcome.case.function}/{outcome.case.name}: {outcome.problem}"
            for outcome in run(implementation, backend, kind[1])
            if outcome.status == "FAIL"
        ]


def test_the_reference_passes():
    assert failures(reference) == []


@on(UNCOMPILED)
def test_pact_plugin_passes(kind):
    assert failures(pact_plugin, kind) == []


def test_pact_plugin_passes_under_jax_jit():
    """One compilation for cases of like shapes and options, where JAX would compile each operation for each shape."""
    with using(("jax", "float64")):
        backend = Jitted("float64")
        names = ("confidence_divergence", "published_divergence")
        divergences = {name: backend.jitted(PACT[name]) for name in names}
        outcomes = list(run(SimpleNamespace(**PACT | divergences), backend, "float64"))
    assert {outcome.status for outcome in outcomes} == {"ok"}, outcomes


class Jitted(JaxBackend):
    """Computes the gradients with the values, which are asked for first."""

    def gradients(self, function, arrays):
        return [self.numpy(self.found[id(array)]) for array in arrays]

    def jitted(self, function):
        """With arrays compiled; but weights that are to be refused are constants, as others are not looked at."""

        def both(logits, others, options):
            values = function(**logits, **others, **dict(options))
            return values.sum(), values

        compiled = jax.jit(jax.grad(both, has_aux=True), static_argnums=2)

        def call(**arguments):
            arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
            options = {name: value for name, value in arguments.items() if name not in arrays}
            weights = arrays.get("weights", jnp.ones(1))
            if not (jnp.isfinite(weights).all() and (weights > 0).any()):
                options["weights"] = tuple(arrays.pop("weights").tolist())
            kept = {name for name in arrays if name == "weights" or arrays[name].dtype.kind != "f"}
            logits = {name: value for name, value in arrays.items() if name not in kept}
            gradients, values = compiled(
                logits, {name: arrays[name] for name in kept}, tuple(options.items())
            )
            self.found = {id(logits[name]): gradient for name, gradient in gradients.items()}
            return values

        return call


def test_only_narrow_types_skip_cases():
    with using(("numpy", "float64")) as backend:
        assert {outcome.status for outcome in run(reference, backend, "float64")} == {"ok"}
    with using(("numpy", "float32")) as backend:
        skipped = [outcome for outcome in run(pact_plugin, backend, "float32") if outcome.status == "skip"]
    assert all(outcome.case.float64_only for outcome in skipped)
    assert 0 < len(skipped) < 20


DIVERGENCE = ("student_logprobs", "reference_logprobs", "student_log_rest", "reference_log_rest")


def reversed_divergence(p, q, p_rest, q_rest):
    return pact_plugin.confidence_divergence(q, p, q_rest, p_rest)


def without_the_rest(p, q, p_rest, q_rest):
    return np.sum(np.exp(q) * (q - p), axis=-1)


def blind_to_the_mass(p, q, p_rest, q_rest):
    """The softmax within S, as in the published objective."""
    p = p - np.log(np.exp(p).sum(-1, keepdims=True))
    q = q - np.log(np.exp(q).sum(-1, keepdims=True))
    return np.sum(np.exp(q) * (q - p), axis=-1)


def naive_remainder(p, q, p_rest, q_rest):
    rest = [np.log(1 - np.exp(x).sum(-1)) if r is None else r for x, r in ((p, p_rest), (q, q_rest))]
    return pact_plugin.confidence_divergence(p, q, *rest)


def two_digits(p, q, p_rest, q_rest):
    return np.round(pact_plugin.confidence_divergence(p, q, p_rest, q_rest), 2)


def unsigned_weights(weights, **arguments):
    return pact_plugin.published_divergence(weights=np.abs(weights), **arguments)


def forgets_temperature_squared(temperature=2.0, **arguments):
    return pact_plugin.published_divergence(temperature=temperature, **arguments) / temperature**2


def counts_from_one(position, **arguments):
    return pact_plugin.published_divergence(position=position + 1, **arguments)


def ignores_the_gate(boost=1.0, **arguments):
    return pact_plugin.published_divergence(boost=0.0, **arguments)


def differences(aligned, contrast):
    means = [
        np.mean([reference.softmax(one).mean(0) for one in side], axis=0) for side in (aligned, contrast)
    ]
    return means[0] - means[1]


def not_centred(aligned_logits, contrast_logits, *, top_k):
    ids, _ = pact_plugin.safety_direction(aligned_logits, contrast_logits, top_k=top_k)
    kept = differences(aligned_logits, contrast_logits)[ids]
    return ids, kept / np.linalg.norm(kept)


def chosen_by_difference(aligned_logits, contrast_logits, *, top_k):
    difference = differences(aligned_logits, contrast_logits)
    ids = np.sort(np.argsort(-difference)[:top_k])
    centred = difference[ids] - difference[ids].mean()
    return ids, centred / np.linalg.norm(centred)


def of_log_probabilities(wrong):
    return lambda **arguments: wrong(*(arguments.get(name) for name in DIVERGENCE))


@pytest.mark.parametrize(
    ("function", "wrong", "case", "problem"),
    [
        ("confidence_divergence", of_log_probabilities(reversed_divergence), "remainder-given", "off by"),
        ("confidence_divergence", of_log_probabilities(without_the_rest), "remainder-given", "off by"),
        ("confidence_divergence", of_log_probabilities(blind_to_the_mass), "remainder-given", "off by"),
        ("confidence_divergence", of_log_probabilities(two_digits), "remainder-given", "off by"),
        (
            "confidence_divergence",
            of_log_probabilities(naive_remainder),
            "derived-unresolved-remainder",
            "not finite",
        ),
        ("published_divergence", unsigned_weights, "defaults", "off by"),
        ("published_divergence", forgets_temperature_squared, "defaults", "off by"),
        ("published_divergence", counts_from_one, "slow-decay", "off by"),
        ("published_divergence", ignores_the_gate, "authors-two-responses", "off by"),
        ("safety_direction", not_centred, "paired", "off by"),
        ("safety_direction", chosen_by_difference, "two-tokens", "ids is off by"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_value_fails(function, wrong, case, problem):
    found = failures(SimpleNamespace(**PACT | {function: wrong}))
    assert any(line.startswith(f"{function}/{case}: ") and problem in line for line in found), found
    assert all(line.startswith(function) for line in found)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_accepting_invalid_arguments_fails(function):
    def accepts_anything(**arguments):
        try:
            return PACT[function](**arguments)
        except pact_plugin.PactError:
            return np.zeros(0)

    found = failures(SimpleNamespace(**PACT | {function: accepts_anything}))
    invalid = [case for case in load() if case.function == function and case.expected is None]
    assert len(found) == len(invalid) > 0
    assert all(line.endswith("accepted, but must raise") for line in found)


def test_an_error_that_names_nothing_fails():
    def mute(**arguments):
        try:
            return pact_plugin.confidence_divergence(**arguments)
        except pact_plugin.PactError as error:
            raise ValueError("wrong shape") from error

    found = failures(SimpleNamespace(**PACT | {"confidence_divergence": mute}))
    assert found
    assert all("the error does not name" in line for line in found)


def leaking(p, q, p_rest, q_rest):
    """As the reference implementation, but the aligned side is not cut off."""
    terms = (
        [q.exp() * (q - p), q_rest.exp() * (q_rest - p_rest)] if q_rest is not None else [q * 0, q[..., 0]]
    )
    return terms[0].sum(-1) + terms[1]


def constant(p, q, p_rest, q_rest):
    p_rest = None if p_rest is None else p_rest.detach()
    return pact_plugin.confidence_divergence(p.detach(), q, p_rest, q_rest)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [(leaking, "a gradient reaches reference_logprobs"), (constant, "gradient is off by")],
)
def test_a_wrong_gradient_fails(wrong, problem):
    implementation = SimpleNamespace(**PACT | {"confidence_divergence": of_log_probabilities(wrong)})
    found = failures(implementation, ("torch", "float64"))
    (line,) = (line for line in found if line.startswith("confidence_divergence/remainder-given: "))
    assert problem in line
    assert "value" not in line


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pact_spec", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_command_line_passes_pact_plugin():
    done = command("pact_plugin")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, summary = done.stdout.splitlines()
    assert summary == f"pact_plugin, numpy float64: {len(load())} passed, 0 failed, 0 skipped"
    assert len(lines) == len(load())
    assert "ok    C2.1   confidence_divergence/remainder-given" in lines


def test_command_line_fails_a_mutated_copy(tmp_path):
    source = Path(pact_spec.reference.__file__).read_text(encoding="utf-8")
    mutated = source.replace("result[i] = temperature**2 *", "result[i] = temperature *")
    assert mutated != source
    (tmp_path / "mutated.py").write_text(mutated, encoding="utf-8")
    done = command("mutated", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL  C3.4   published_divergence/defaults: value is off by" in done.stdout
    assert "FAIL  C2" not in done.stdout
