"""Run the vectors against an implementation: any object that has the three functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pact_spec import reference
from pact_spec.backends import Backend
from pact_spec.vectors import Case, Tolerance, load

TOLERANCES = {
    "float64": {"value": Tolerance(1e-9, 1e-11), "gradient": Tolerance(1e-9, 1e-11)},
    "float32": {"value": Tolerance(1e-4, 1e-5), "gradient": Tolerance(1e-4, 1e-5)},
    # The value is computed in float32 (C6.1); the gradient is rounded to the type of the input.
    "bfloat16": {"value": Tolerance(1e-4, 1e-5), "gradient": Tolerance(1e-2, 1e-3)},
    "float16": {"value": Tolerance(1e-4, 1e-5), "gradient": Tolerance(2e-3, 1e-4)},
}

_DIFFERENTIATED = {
    "confidence_divergence": ("student_logprobs", "student_log_rest"),
    "published_divergence": ("student",),
}
_CONSTANT = {
    "confidence_divergence": ("reference_logprobs", "reference_log_rest"),
    "published_divergence": ("reference", "reference_post"),
}


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    case: Case
    status: Literal["ok", "FAIL", "skip"]
    problem: str = ""


def run(implementation: Any, backend: Backend, dtype: str) -> Iterator[Outcome]:
    """Run every case.

    Args:
        implementation: Has `confidence_divergence`, `published_divergence` and `safety_direction`.
        backend: The array library to call it with.
        dtype: The floating-point type that the back end was made for.
    """
    for case in load():
        if case.float64_only and dtype != "float64":
            yield Outcome(case, "skip", "needs float64")
            continue
        try:
            problem = _problem(getattr(implementation, case.function), case, backend, dtype)
        except Exception as error:  # whatever an implementation raises is its failure, and the run goes on
            problem = f"raised {type(error).__name__}: {error}"
        yield Outcome(case, "FAIL" if problem else "ok", problem)


def _problem(function: Any, case: Case, backend: Backend, dtype: str) -> str:
    arguments = {name: _convert(value, backend.array) for name, value in case.arguments.items()}
    if case.expected is None:
        return _accepts(function, case, arguments)
    expected = case.expected
    if dtype != "float64":  # judge the arithmetic, not the rounding of the input
        rounded = {name: _convert(value, backend.numpy) for name, value in arguments.items()}
        expected = _evaluate_reference(case, rounded)
    result = function(**arguments, **case.options)
    gradients = _gradients(function, case, arguments, backend)
    problems = []
    for key, wanted in expected.items():
        kind = "gradient" if key.startswith("gradient") else "value"
        if kind == "gradient" and gradients is None:
            continue
        found = _found(key, result, case, arguments, gradients or {}, backend)
        problems.append(_difference(key, found, wanted, case.tolerance.get(key, TOLERANCES[dtype][kind])))
    leaking = [
        name for name in _CONSTANT.get(case.function, ()) if np.any((gradients or {}).get(name, 0) != 0)
    ]
    if leaking:  # P8
        problems.append(f"a gradient reaches {', '.join(leaking)}")
    return "; ".join(problem for problem in problems if problem)


def _found(
    key: str,
    result: Any,
    case: Case,
    arguments: Mapping[str, Any],
    gradients: Mapping[str, np.ndarray],
    backend: Backend,
) -> np.ndarray:
    if key in ("ids", "weights"):
        return backend.numpy(result[("ids", "weights").index(key)])
    if key == "value":
        return backend.numpy(result)
    if key == "mean":
        return backend.numpy(result).mean()
    if key == "gradient_of_mean":
        return gradients["student"] / len(gradients["student"])
    if case.function == "published_divergence":
        return gradients["student"]
    # The chain rule through the softmax of the K + 1 bucket logits (C2.4).
    of_tokens = gradients["student_logprobs"]
    of_rest = gradients.get("student_log_rest", np.zeros(of_tokens.shape[:-1]))
    log_rest = arguments.get("student_log_rest")
    buckets = reference.bucket_logprobs(
        backend.numpy(arguments["student_logprobs"]), None if log_rest is None else backend.numpy(log_rest)
    )
    return reference.through_softmax(
        np.concatenate([of_tokens, of_rest[..., None]], axis=-1), np.exp(buckets)
    )


def _gradients(
    function: Any, case: Case, arguments: Mapping[str, Any], backend: Backend
) -> dict[str, np.ndarray] | None:
    """Of the sum of the values, by argument; None where the back end or the function has none."""
    differentiated = _DIFFERENTIATED.get(case.function, ()) + _CONSTANT.get(case.function, ())
    names = [name for name in differentiated if name in arguments]

    def of_named(*arrays: Any) -> Any:
        return function(**{**arguments, **dict(zip(names, arrays, strict=True))}, **case.options)

    found = backend.gradients(of_named, [arguments[name] for name in names]) if names else None
    return None if found is None else dict(zip(names, found, strict=True))


def _accepts(function: Any, case: Case, arguments: Mapping[str, Any]) -> str:
    try:
        function(**arguments, **case.options)
    except Exception as error:  # of the implementation's own type; the message must name the argument (C1.5)
        unnamed = str(case.argument) not in str(error)
        return f"the error does not name {case.argument}: {error}" if unnamed else ""
    return "accepted, but must raise"


def _evaluate_reference(case: Case, arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if case.function == "safety_direction":
        ids, weights = reference.safety_direction(**arguments, **case.options)  # type: ignore[arg-type]
        return {"ids": ids, "weights": weights}
    if case.function == "published_divergence":
        value = reference.published_divergence(**arguments, **case.options)
        return {"value": value, "gradient": reference.published_gradient(**arguments, **case.options)}
    value = reference.confidence_divergence(**arguments)
    return {"value": value, "gradient": reference.confidence_gradient(**arguments)}


def _difference(key: str, found: np.ndarray, wanted: np.ndarray, tolerance: Tolerance) -> str:
    if np.shape(found) != np.shape(wanted):
        return f"{key} has shape {list(np.shape(found))}, not {list(np.shape(wanted))}"
    if np.allclose(found, wanted, rtol=tolerance.relative, atol=tolerance.absolute):
        return ""
    if not np.isfinite(found).all():
        return f"{key} is not finite"
    return f"{key} is off by {np.max(np.abs(found - wanted)):.3g}"


def _convert(value: Any, convert: Any) -> Any:
    return [convert(one) for one in value] if isinstance(value, list) else convert(value)
