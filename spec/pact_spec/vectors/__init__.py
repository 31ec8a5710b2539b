"""Reading and writing the conformance vectors; `schema.json` describes the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
FUNCTIONS = ("confidence_divergence", "published_divergence", "safety_direction")


@dataclass(frozen=True)
class Tolerance:
    """How far an entry may be off: `absolute + relative * |expected|`."""

    relative: float
    absolute: float


@dataclass(frozen=True)
class Case:
    """One call, and what must come of it."""

    function: str
    name: str
    clause: str
    description: str
    arguments: Mapping[str, Any]
    """Arrays by name, in the order of the signature; lists of arrays for `safety_direction`."""
    options: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, np.ndarray] | None = None
    """None where the call must raise."""
    argument: str | None = None
    """The argument at fault, where the call must raise."""
    float64_only: bool = False
    tolerance: Mapping[str, Tolerance] = field(default_factory=dict)
    """By key of `expected`, where it is not the usual one of the type."""


def load() -> list[Case]:
    """Every case: the generated ones, then the authors'."""
    cases = []
    for function in FUNCTIONS:
        content = json.loads((FOLDER / f"{function}.json").read_text(encoding="utf-8"))
        cases += [_decode_case(function, case) for case in content["cases"]]
    return cases + _authors()


def dump(function: str, cases: Sequence[Case]) -> str:
    """The text of a function's file, one case a line."""
    lines = [json.dumps(_encode_case(case), ensure_ascii=False) for case in cases]
    head = f'{{"function": {json.dumps(function)}, "cases": [\n'
    return head + ",\n".join(lines) + "\n]}\n"


def _encode_case(case: Case) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": case.name,
        "clause": case.clause,
        "description": case.description,
        "valid": case.expected is not None,
    }
    if case.float64_only:
        content["float64_only"] = True
    content["arguments"] = {name: _encode(value) for name, value in case.arguments.items()}
    content["options"] = {name: _encode_number(value) for name, value in case.options.items()}
    if case.expected is None:
        content["argument"] = case.argument
    else:
        content["expected"] = {name: _encode(value) for name, value in case.expected.items()}
    return content


def _decode_case(function: str, content: Mapping[str, Any]) -> Case:
    expected = content.get("expected")
    return Case(
        function=function,
        name=content["name"],
        clause=content["clause"],
        description=content["description"],
        arguments={name: _decode(value) for name, value in content["arguments"].items()},
        options={name: _decode_number(value) for name, value in content["options"].items()},
        expected=None if expected is None else {name: _decode(value) for name, value in expected.items()},
        argument=content.get("argument"),
        float64_only=content.get("float64_only", False),
    )


def _encode(value: Any) -> Any:
    if isinstance(value, list):
        return [_encode(one) for one in value]
    return {"shape": list(value.shape), "data": [_encode_number(x) for x in value.ravel().tolist()]}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(one) for one in value]
    return np.array([_decode_number(x) for x in value["data"]]).reshape(value["shape"])


def _encode_number(x: float) -> float | str:
    return str(x) if x in (float("inf"), float("-inf")) else x


def _decode_number(x: float | str) -> float:
    return float(x) if isinstance(x, str) else x


def _authors() -> list[Case]:
    cases = []
    for content in json.loads((FOLDER / "authors/published_divergence.json").read_text(encoding="utf-8")):
        names = ("student", "reference", "reference_post", "weights", "position")
        gate = dict(content["gate"])
        gate["gate_temperature"] = gate.pop("temperature")
        expected = content["expected"]
        case = Case(
            function="published_divergence",
            name="authors-" + content["name"].replace("_", "-"),
            clause="C3.4",
            description="Figures of the authors' code.",
            arguments={name: np.array(content[name], dtype=float) for name in names},
            options={"temperature": content["temperature"], **gate},
            expected={
                "mean": np.array(expected["mean_divergence"]),
                "gradient_of_mean": np.array(expected["gradient_of_mean_wrt_student"]),
            },
            float64_only=True,
            tolerance={"mean": Tolerance(2e-5, 0), "gradient_of_mean": Tolerance(0, 1e-6)},
        )
        cases.append(case)
    for content in json.loads((FOLDER / "authors/safety_direction.json").read_text(encoding="utf-8")):
        case = Case(
            function="safety_direction",
            name="authors-" + content["name"].replace("_", "-"),
            clause="C8.2",
            description="Figures of the authors' code.",
            arguments={
                "aligned_logits": [np.array(logits) for logits in content["aligned_logits"]],
                "contrast_logits": [np.array(logits) for logits in content["base_logits"]],
            },
            options={"top_k": content["topk"]},
            expected={key: np.array(content["expected"][key]) for key in ("ids", "weights")},
            float64_only=True,
            tolerance={"weights": Tolerance(0, 1e-5)},
        )
        cases.append(case)
    return cases
