"""The vectors: they follow their schema, and are what the generator writes."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pact_spec.generate import CASES
from pact_spec.vectors import FOLDER, FUNCTIONS, dump


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
