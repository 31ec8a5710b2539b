"""Response positions (spec/PACT.md, "Response positions") against a plain loop."""

from __future__ import annotations

import pact_spec.reference as spec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_plugin.data.positions import nothing_masked, positions_of, response_positions
from pact_plugin.errors import ShapeError


def by_hand(labels: list[list[int]], document: list[list[int]]) -> list[tuple[int, int, int, int]]:
    """(row, column, index, response) by the definition, one token at a time."""
    found, response = [], -1
    for row, (row_labels, row_documents) in enumerate(zip(labels, document, strict=True)):
        index = 0
        for column, label in enumerate(row_labels):
            if label == -100:
                continue
            same = column > 0 and row_documents[column] == row_documents[column - 1]
            if same and row_labels[column - 1] != -100:
                index += 1
            else:
                index, response = 0, response + 1
            if same:
                found.append((row, column, index, response))
    return found


def as_tuples(positions) -> list[tuple[int, int, int, int]]:
    columns = (positions.row, positions.column, positions.index, positions.response)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@st.composite
def packed_rows(draw):
    rows = draw(st.integers(1, 4))
    width = draw(st.integers(1, 24))
    labels, documents, position_ids = [], [], []
    for _ in range(rows):
        labels.append(draw(st.lists(st.sampled_from([-100, 3, 7]), min_size=width, max_size=width)))
        starts = draw(st.lists(st.booleans(), min_size=width, max_size=width))
        document, position, row_documents, row_positions = 0, -1, [], []
        for start in starts:
            document, position = (document + 1, 0) if start else (document, position + 1)
            row_documents.append(document)
            row_positions.append(position)
        documents.append(row_documents)
        position_ids.append(row_positions)
    return labels, documents, position_ids


@settings(deadline=None, derandomize=True, max_examples=200)
@given(packed_rows())
def test_equals_the_definition(rows):
    labels, documents, position_ids = rows
    found = response_positions(torch.tensor(labels), position_ids=torch.tensor(position_ids))
    assert as_tuples(found) == by_hand(labels, documents)
    assert int(found.trained) == sum(label != -100 for row in labels for label in row[1:])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(packed_rows(), st.one_of(st.none(), st.integers(1, 5)))
def test_the_first_of_each_response_p21_c5_6(rows, first):
    labels, documents, position_ids = rows
    starts = [[c == 0 or row[c] != row[c - 1] for c in range(len(row))] for row in documents]
    found = response_positions(torch.tensor(labels), position_ids=torch.tensor(position_ids), first=first)
    wanted, count = spec.response_positions(labels, starts, first)
    assert [position[:3] for position in as_tuples(found)] == wanted
    assert int(found.trained) == count == int((torch.tensor(labels)[:, 1:] != -100).sum())
    everything = response_positions(torch.tensor(labels), position_ids=torch.tensor(position_ids))
    kept = [p for p in as_tuples(everything) if first is None or p[2] < first]
    assert as_tuples(found) == kept


@settings(deadline=None, derandomize=True, max_examples=100)
@given(packed_rows())
def test_cumulative_lengths_say_the_same_as_position_ids(rows):
    labels, _, position_ids = rows
    flat_labels = torch.tensor(labels).reshape(1, -1)
    flat_positions = torch.tensor(position_ids).reshape(1, -1)
    # Every row begins a document of its own here.
    width = len(labels[0])
    restarts = [i for i in range(flat_positions.shape[1]) if i % width == 0 or flat_positions[0, i] == 0]
    cu_seq_lens = torch.tensor([*restarts, flat_positions.shape[1]], dtype=torch.int32)
    rebuilt = torch.cat([torch.arange(n) for n in cu_seq_lens.diff().tolist()])[None]
    by_lengths = response_positions(flat_labels, cu_seq_lens=cu_seq_lens)
    assert as_tuples(by_lengths) == as_tuples(response_positions(flat_labels, position_ids=rebuilt))
    whole = torch.tensor(labels)
    by_lengths = response_positions(whole, cu_seq_lens=cu_seq_lens)  # over all rows, as Axolotl 0.21 has them
    assert as_tuples(by_lengths) == as_tuples(response_positions(whole, position_ids=rebuilt.view_as(whole)))


def test_an_empty_document_at_the_end_takes_no_position():
    labels = torch.tensor([[1, 2, 3]])
    plain = response_positions(labels, cu_seq_lens=torch.tensor([0, 3]))
    assert as_tuples(response_positions(labels, cu_seq_lens=torch.tensor([0, 3, 3]))) == as_tuples(plain)
    assert len(plain) == 2


def test_right_padded_left_padded_and_multi_turn():
    x = -100
    labels = torch.tensor([[x, x, 5, 6, x, x, 7], [x, x, x, x, x, 5, 6], [x, 4, x, x, x, x, x]])
    found = response_positions(labels)
    assert as_tuples(found) == [
        (0, 2, 0, 0),
        (0, 3, 1, 0),
        (0, 6, 0, 1),
        (1, 5, 0, 2),
        (1, 6, 1, 2),
        (2, 1, 0, 3),
    ]


def test_a_label_behind_padding_on_the_left_is_no_position():
    batch = {
        "labels": torch.tensor([[-100, -100, 5, 6], [4, -100, 5, 6]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    assert as_tuples(positions_of(batch)) == [(0, 3, 1, 0), (1, 2, 0, 2), (1, 3, 1, 2)]


def test_padding_between_the_tokens_of_a_row_is_refused():
    batch = {
        "labels": torch.tensor([[-100, -100, -100, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 0, 1, 1]]),
    }
    with pytest.raises(ShapeError, match=r"attention_mask: a row has padding between its tokens"):
        positions_of(batch)
    packed = batch | {"position_ids": torch.tensor([[0, 1, 0, 0, 1]])}
    assert as_tuples(positions_of(packed)) == [(0, 4, 1, 0)]


def test_left_padded_position_ids_are_no_documents_of_their_own():
    x = -100
    labels = torch.tensor([[x, x, x, 5, 6]])
    for pads in ([1, 1, 0, 1, 2], [0, 0, 0, 1, 2]):
        assert as_tuples(response_positions(labels, position_ids=torch.tensor([pads]))) == [
            (0, 3, 0, 0),
            (0, 4, 1, 0),
        ]


def test_a_label_in_column_0_or_behind_another_document_is_no_position():
    labels = torch.tensor([[1, 2, 3, 4]])
    assert as_tuples(response_positions(labels, position_ids=torch.tensor([[0, 1, 0, 1]]))) == [
        (0, 1, 1, 0),
        (0, 3, 1, 1),
    ]


def test_wrong_shapes():
    with pytest.raises(ShapeError, match="labels"):
        response_positions(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match="position_ids"):
        response_positions(
            torch.zeros(2, 3, dtype=torch.long), position_ids=torch.zeros(2, 2, dtype=torch.long)
        )
    with pytest.raises(ShapeError, match="do not describe all rows"):
        response_positions(torch.zeros(2, 3, dtype=torch.long), cu_seq_lens=torch.tensor([0, 3]))
    with pytest.raises(ShapeError, match="shift_labels"):
        positions_of({"labels": torch.zeros(1, 2), "shift_labels": torch.zeros(1, 2)})
    with pytest.raises(ShapeError, match="labels"):
        positions_of({"input_ids": torch.zeros(1, 2)})


def test_positions_in_several_planes_say_nothing_of_unpacked_rows():
    x = -100
    labels = torch.tensor([[x, x, x, 5, 6], [x, x, 3, 4, x]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    plane = torch.tensor([[1, 1, 0, 1, 2], [0, 1, 2, 3, 1]])  # as Qwen2-VL has them
    batch = {"labels": labels, "attention_mask": mask, "position_ids": plane.expand(3, 2, 5)}
    alone = {"labels": labels, "attention_mask": mask}
    assert as_tuples(positions_of(batch)) == as_tuples(positions_of(alone))
    assert not nothing_masked(batch)
    packed = {"labels": labels, "position_ids": torch.tensor([[0, 1, 2, 0, 1]]).expand(3, 2, 5)}
    with pytest.raises(ShapeError, match="position_ids"):
        positions_of(packed)
    lengths = {"cu_seq_lens_q": torch.tensor([0, 3, 5, 8, 10])}
    assert len(positions_of(packed | lengths)) == 2


def test_nothing_masked_sees_through_padding_and_document_starts():
    x = -100
    pad = {"labels": torch.tensor([[1, 2, x]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert nothing_masked(pad)
    packed = {"labels": torch.tensor([[x, 2, x, 4]]), "position_ids": torch.tensor([[0, 1, 0, 1]])}
    assert nothing_masked(packed)
    assert not nothing_masked(
        {"labels": torch.tensor([[x, x, 3]]), "attention_mask": torch.tensor([[1, 1, 1]])}
    )


def test_nothing_is_masked_where_only_the_token_that_also_pads_is():
    x, end = -100, 9
    ids = torch.tensor([[1, 2, end, 3, 4, end], [1, 5, 6, end, end, end]])
    batch = {
        "input_ids": ids,
        "labels": ids.masked_fill(ids == end, x),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
    }
    assert nothing_masked(batch)
    batch["labels"][0, :2] = x  # a prompt of the first row
    assert not nothing_masked(batch)
    cut = {"input_ids": torch.tensor([[5, 6, 1, 2, 7, 8]]), "labels": torch.tensor([[5, 6, x, x, 7, 8]])}
    assert not nothing_masked(cut), "a row that begins within an answer"
