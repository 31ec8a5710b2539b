"""Responses as wholes against plain loops (spec/PACT.md, clauses C2.6 and C5.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pact_plugin.data.positions import ResponsePositions, response_positions
from pact_plugin.data.responses import Responses

# Labels of rows, and the columns but the first where documents start.
ROWS: dict[str, tuple[list[list[int]], list[set[int]]]] = {
    "padded on the right": ([[-100, -100, 5, 6, -100, -100], [-100, 7, 8, 9, 10, 11]], [set(), set()]),
    "padded on the left": ([[-100, -100, -100, -100, 5, 6], [-100, 7, 8, 9, 10, 11]], [{2}, set()]),
    "of several turns": ([[-100, 5, 6, -100, 7, -100, -100, 8, 9]], [set()]),
    "packed": ([[-100, 5, 6, -100, 7, -100, 8, 9]], [{3, 5}]),
    "packed without prompts": ([[4, 5, 6, 7, 8, 9]], [{2, 5}]),
    "a document that begins inside of a run": ([[-100, 5, 6, 7, -100, 8]], [{2}]),
    "a document that begins with a response": ([[-100, 5, -100, 6, 7, -100, 8]], [{3}]),
    "none": ([[-100, -100, -100]], [set()]),
    "no token": ([[], []], [set(), set()]),
}


def positions_of(labels: Tensor, starts: list[set[int]]) -> ResponsePositions:
    ids = torch.zeros_like(labels)
    for row, begins in enumerate(starts):
        for column in range(1, labels.shape[1]):
            ids[row, column] = 0 if column in begins else ids[row, column - 1] + 1
    return response_positions(labels, position_ids=ids)


def by_hand(labels: Tensor, starts: list[set[int]]) -> list[tuple[tuple[int, int], list[int]]]:
    """The place of the first token of each response, and its tokens, for those whose first token has a predecessor."""
    found = []
    for row, values in enumerate(labels.tolist()):
        begins, counts = starts[row] | {0}, False
        for column, label in enumerate(values):
            if label == -100:
                continue
            if column in begins:
                counts = False
            elif values[column - 1] == -100:
                counts = True
                found.append(((row, column), []))
            if counts:
                found[-1][1].append(label)
    return found


def assert_equal_to_the_loop(labels: Tensor, starts: list[set[int]]) -> int:
    """Both ways to say what the responses are; their number."""
    positions, wanted = positions_of(labels, starts), by_hand(labels, starts)
    found = Responses.of(labels, positions)
    assert len(found) == len(wanted)
    assert list(zip(found.row.tolist(), found.column.tolist(), strict=True)) == [at for at, _ in wanted]
    for number, (_, tokens) in enumerate(wanted):
        for limit in (1, 2, 3, 100):
            assert found.tokens(number, limit) == tokens[:limit]
    for first in (None, 1, 2, 3):
        among = positions.among(first)
        owner = []
        for row, column in zip(among.row.tolist(), among.column.tolist(), strict=True):
            inside = [
                number
                for number, ((r, start), tokens) in enumerate(wanted)
                if r == row and start <= column < start + len(tokens)
            ]
            owner.append(inside[0] if inside else -1)
        assert found.owner(among).tolist() == owner
    return len(found)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_each_layout(name):
    labels, starts = ROWS[name]
    found = assert_equal_to_the_loop(torch.tensor(labels, dtype=torch.long), starts)
    expected = {
        "padded on the right": 2,
        "padded on the left": 2,
        "of several turns": 3,
        "packed": 3,
        "packed without prompts": 0,
        "a document that begins inside of a run": 2,
        "a document that begins with a response": 2,
        "none": 0,
        "no token": 0,
    }
    assert found == expected[name]


def test_random_rows():
    random, seen = np.random.default_rng(0), 0
    for _ in range(200):
        rows, width = random.integers(1, 4), random.integers(1, 20)
        labels = np.where(random.random((rows, width)) < 0.4, -100, random.integers(3, 9, (rows, width)))
        starts = [{int(c) for c in range(1, width) if random.random() < 0.2} for _ in range(rows)]
        seen += assert_equal_to_the_loop(torch.from_numpy(labels), starts)
    assert seen > 500


def test_a_documents_boundary_ends_a_response_and_what_follows_belongs_to_none():
    """The labels go on behind it: these are a response of the next document, whose first token nothing predicts."""
    labels = torch.tensor([[-100, 5, 6, 7, 8, 9]])
    positions = positions_of(labels, [{3}])
    found = Responses.of(labels, positions)
    assert len(found) == 1
    assert found.tokens(0, 24) == [5, 6]
    assert positions.column.tolist() == [1, 2, 4, 5]
    assert found.owner(positions).tolist() == [0, 0, -1, -1]


def test_a_response_at_a_documents_start_is_none():
    labels = torch.tensor([[5, 6, 7], [-100, 8, 9]])
    positions = positions_of(labels, [set(), set()])
    found = Responses.of(labels, positions)
    assert found.numbers.tolist() == [1]
    assert found.tokens(0, 24) == [8, 9]
    assert found.owner(positions).tolist() == [-1, -1, 0, 0]


@pytest.mark.parametrize(
    ("name", "number", "wanted"),
    [
        ("packed", 0, ()),  # alone behind the first token
        ("padded on the left", 0, (2, 3)),
        ("of several turns", 1, (1, 2, 3)),
        ("of several turns", 2, (4, 5, 6)),
        ("a document that begins with a response", 1, (3, 4, 5)),
    ],
)
def test_what_stands_before_a_response_is_of_its_document(name, number, wanted):
    labels, starts = (torch.tensor(part) if part is ROWS[name][0] else part for part in ROWS[name])
    responses = Responses.of(labels, positions_of(labels, starts))
    columns = torch.arange(labels.shape[1]).expand_as(labels)
    assert responses.before(number, columns, 3) == wanted
