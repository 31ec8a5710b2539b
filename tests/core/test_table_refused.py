"""Tables that are refused: of something else, of another format, damaged (spec/PACT.md, clause C7.5)."""

from __future__ import annotations

import json

import pytest
import torch
from small_tables import CPU, HELD, IDS, document, stored, table

from pact_plugin.errors import StoreError
from pact_plugin.reference.columns import Columns


@pytest.mark.parametrize(
    ("change", "columns", "words"),
    [
        ({"model": "other"}, HELD, "another model, or of this one after training"),
        ({"tokenizer": "other"}, HELD, "another tokenizer"),
        ({"model": "x", "tokenizer": "y"}, HELD, "training and another tokenizer"),
        ({}, HELD[:1], "other settings of easing or hold_data"),
        ({}, HELD[::-1], "other settings of easing or hold_data"),
        ({}, (Columns("logprobs", (3, 4, 5, 8)), HELD[1]), "other safety tokens"),
        ({}, (Columns("logits", IDS), HELD[1]), "other predictions"),
        ({}, (HELD[0], Columns("log_rest", IDS, 8)), "other settings of easing or hold_data"),
        ({}, (HELD[0], Columns("log_rest", IDS, behind=(1,))), "other predictions"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, change, columns, words):
    table(tmp_path).create()
    table(tmp_path)
    with pytest.raises(
        StoreError,
        match=rf"advanced.store='{tmp_path}': .*{words}.*new run delete the folder, or name another",
    ):
        table(tmp_path, columns, **change)


def test_what_a_resumed_run_needs_where_its_start_is_random(tmp_path):
    table(tmp_path).create()
    with pytest.raises(
        StoreError, match=r"For a new run delete.*A resumed run.*`set_seed` before they are made"
    ):
        table(tmp_path, model="other")
    with pytest.raises(StoreError, match=r"or name another with `advanced.store`\.$"):
        table(tmp_path, tokenizer="other")
    with pytest.raises(StoreError, match=r"A resumed run needs.*\$PACT_CACHE"):
        table(tmp_path, HELD[:1])


def test_another_version_of_the_format(tmp_path):
    table(tmp_path).create()
    content = json.loads((tmp_path / "header.json").read_text())
    (tmp_path / "header.json").write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(StoreError, match="another version of the format"):
        table(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"model": "m"}'])
def test_a_damaged_header(tmp_path, content):
    (tmp_path / "header.json").write_text(content)
    with pytest.raises(StoreError, match=r"store=.*delete the folder"):
        table(tmp_path)


def test_predictions_without_a_header_are_not_taken_over(tmp_path):
    stored(tmp_path, {HELD[0]: torch.zeros(3, 4), HELD[1]: torch.zeros(3, 1)}, document(3))
    (tmp_path / "header.json").unlink()
    with pytest.raises(StoreError, match=r"without their header\.json.*delete the folder"):
        table(tmp_path)


def test_a_document_of_another_length(tmp_path):
    values = torch.zeros(3, 4)
    stored(tmp_path, {HELD[0]: values, HELD[1]: values[:, :1]}, document(3))
    with pytest.raises(StoreError, match="a document of 2 positions has 15 numbers"):
        table(tmp_path).fetch([document(2)], CPU)
