"""Filling a table: its size, what stops it, and what an interrupted run leaves (spec/PACT.md, clause C7.7)."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from fill_slowly import batches, constraint, filling
from loop import TERMS, TOKENIZER, a_batch, adapted, loss_of, moved
from loop import settings as config
from small_tables import CPU, table
from tiny import tiny_model

from pact_plugin import PactConstraint
from pact_plugin.data.documents import documents_of
from pact_plugin.data.positions import positions_of
from pact_plugin.errors import NonFiniteError, ReferenceModelError, StoreError
from pact_plugin.reference.columns import Aligned


def test_the_size_of_a_table_is_known_beforehand(tmp_path):
    batch = a_batch()
    built = PactConstraint(tiny_model(), TOKENIZER, config(store=tmp_path, anchors=False))
    built.fill([batch], progress=False)
    documents = documents_of(batch, positions_of(batch))
    known = sum(built.reference.table.bytes_of(one) for one in documents)
    (file,) = tmp_path.glob("*.shard")
    assert known < file.stat().st_size < known + 100  # what a file begins and ends with


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_sorts_many_documents_by_length_after_a_first_pass(tmp_path, monkeypatch, rank):
    built, rows = constraint(tmp_path), []
    built.fill([], progress=False)  # the table is there, as rank 0 has made it
    monkeypatch.setattr("pact_plugin.reference.fill.rank", lambda: rank)
    built.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    built.fill(batches(), tokens_per_pass=30, progress=False)
    # Four documents are more than the 30 tokens of the first pass, which takes three; those behind are sorted together.
    assert rows == [3, 1, *[3] * 12]


# --- what stops it ---


def test_a_token_that_another_aligned_model_has_no_row_for(tmp_path):
    model, rows = tiny_model(), tiny_model().config.vocab_size
    model.resize_token_embeddings(rows + 8, mean_resizing=False)
    batch = a_batch()
    batch["input_ids"][0, 1] = rows + 3
    for store in (tmp_path, None):
        own = config(store=store, anchors=False)
        built = PactConstraint(model, TOKENIZER, own, reference_model=tiny_model())
        with pytest.raises(
            ReferenceModelError, match=f"token id {rows + 3}, and the aligned model has {rows} rows"
        ):
            built.fill([batch], progress=False) if store else loss_of(built, model, batch)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    built = PactConstraint(tiny_model(), TOKENIZER, config(store=tmp_path / "file", anchors=False))
    with pytest.raises(StoreError, match=r"store=.*cannot be written.*has room"):
        built.fill([a_batch()], progress=False)


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    built = constraint(tmp_path)
    with pytest.raises(
        StoreError, match=r"it needs about .* GiB, and 0.0 GiB are free.*anchors alone.*`first: 16`"
    ):
        built.fill(batches(), tokens_per_pass=20, progress=False)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("source", ["model", "adapter_off"])
def test_nan_in_the_aligned_model_stops_filling_and_is_not_stored(tmp_path, terms, source):
    model, aligned = adapted(), tiny_model() if source == "model" else None
    asked = config(store=tmp_path, **TERMS[terms])
    built = PactConstraint(model, TOKENIZER, asked, reference_model=aligned)
    assert built.reference.choice.source == source
    broken = model.get_base_model() if aligned is None else aligned
    broken.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        built.fill([a_batch()], progress=False)
    assert not list(tmp_path.glob("*.shard"))


# --- accidents and company ---


def fetched(built: PactConstraint, batch) -> Aligned:
    found = built.reference.table.fetch(documents_of(batch, positions_of(batch)), CPU)
    assert found is not None
    return found


def test_killed_while_filling_the_next_run_fills_what_is_missing(tmp_path):
    with filling(tmp_path) as (process, passes):
        for _ in range(12):
            passes.send("on")
            assert passes.recv() == "pass"
        with pytest.raises(StoreError, match="another run is filling it"):
            constraint(tmp_path).fill(batches(), progress=False)
        process.kill()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob("*.part"))

    built, passes = constraint(tmp_path), []
    built.model.register_forward_hook(lambda *_: passes.append(1))
    built.fill(batches(), tokens_per_pass=1, progress=False)
    assert 0 < len(passes) <= 40 - 10
    assert built.reference.table.documents == 40
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".json", ".shard"}
    fresh = constraint(tmp_path / "fresh")
    fresh.fill(batches(), progress=False)
    for batch in batches():
        for one, values in fetched(fresh, batch).items():
            torch.testing.assert_close(fetched(built, batch)[one], values, rtol=2**-9, atol=1e-6)


def test_killed_before_anything_was_committed(tmp_path):
    empty = table(tmp_path)
    empty.create()
    (tmp_path / "00000-abc.part").write_bytes(b"")
    empty.create()
    empty.refresh()
    assert empty.documents == 0
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]


def test_a_process_reads_while_another_one_adds(tmp_path):
    built = constraint(tmp_path)
    built.fill(batches(20), progress=False)

    def total() -> float:
        return sum(
            float(values.double().sum()) for one in batches(20) for values in fetched(built, one).values()
        )

    before = total()
    with filling(tmp_path) as (process, passes):
        seen = 0
        while passes.recv() == "pass":
            seen += 1
            built.reference.table.refresh()
            assert total() == before != 0
            passes.send("on")
    assert process.exitcode == 0
    assert seen == 20
    built.reference.table.refresh()
    assert built.reference.table.documents == 40


def test_an_error_while_filling_keeps_what_was_computed(tmp_path):
    built = constraint(tmp_path)

    def stopping():
        yield from batches(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built.fill(stopping(), tokens_per_pass=10, progress=False)
    assert json.loads((tmp_path / "header.json").read_text())["format"] == "pact-table"
    assert built.model.training is False
    again = constraint(tmp_path)
    again.fill(batches(3), progress=False)
    assert torch.isfinite(loss_of(again, moved(again.model), batches(3)[0]))
