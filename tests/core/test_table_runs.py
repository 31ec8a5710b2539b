"""A table beside a bespoke loop: filled once, then equal to a reference that is run in every step."""

from __future__ import annotations

import pytest
import torch
from loop import (
    TERMS,
    TOKENIZER,
    a_batch,
    adapted,
    loss_of,
    measured,
    moved,
    settings,
    trained,
    without_response,
)
from tiny import tiny_model

from pact_plugin import PactConstraint
from pact_plugin.errors import ConfigError, ReceiptError, ReferenceModelError, StoreError
from pact_plugin.reference.source import Source
from pact_plugin.run.receipt import Receipt
from pact_plugin.terms.step import Step

HALF = 2e-3
"""Relative error of a loss whose reference is rounded to float16."""


EAGER = {"attn_implementation": "eager"}
"""By which documents of a packed row are kept apart to the last digit."""


def full():
    return tiny_model(**EAGER)


def held(store=None, **changes):
    """Easing at the first 16 tokens, and the data held."""
    return settings(**({"hold_data": True, "weight": 1.5, "store": store} | changes))


def filled(model, store, *batches, **changes) -> PactConstraint:
    constraint = PactConstraint(model, TOKENIZER, held(store, **changes))
    constraint.fill(batches or [a_batch()], progress=False)
    return constraint


def left_padded(pads: int = 3) -> dict[str, torch.Tensor]:
    batch = a_batch()
    rows = batch["labels"].shape[0]
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {name: torch.cat([torch.full((rows, pads), fill[name]), batch[name]], 1) for name in fill}


def documents() -> list[dict[str, torch.Tensor]]:
    return [a_batch(seed, rows=1, width=8 + seed) for seed in range(3)]


def packed() -> dict[str, torch.Tensor]:
    parts = documents()
    return {
        "input_ids": torch.cat([d["input_ids"] for d in parts], 1),
        "labels": torch.cat([d["labels"] for d in parts], 1),
        "position_ids": torch.cat([torch.arange(d["labels"].shape[1]) for d in parts])[None],
        "use_cache": False,
    }


def padding_free() -> dict[str, torch.Tensor]:
    batch = packed()
    lengths = [d["labels"].shape[1] for d in documents()]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return batch | {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


def multi_turn() -> dict[str, torch.Tensor]:
    batch = a_batch(1, rows=2, width=16)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, [0, 1, 5, 6, 7, 12]] = -100
    return batch


LAYOUTS = [a_batch, left_padded, packed, padding_free, multi_turn]
ASKED = {
    "easing": {"hold_data": False},
    "easing of the first": {"hold_data": False, "easing": {"first": 2}},
    "hold": {"easing": False},
    "easing and hold": {"easing": {"first": 1}, "hold_data": {"first": 3}},
    "published": TERMS["published"] | {"hold_data": False},
    "published of the first": {
        "easing": False,
        "hold_data": False,
        "advanced": {"published": {"first": 2, "prefix": 1, "decay": 0}},
    },
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("build", [tiny_model, adapted, trained])
def test_a_table_equals_a_pass_in_the_step_to_rounding(tmp_path, build, layout, asked):
    """Clauses C7.4 and C7.6."""
    batch = layout()

    def make():
        return build(**EAGER)

    online = PactConstraint(model := make(), TOKENIZER, held(**ASKED[asked]))
    expected = loss_of(online, moved(model), batch)
    expected.backward()

    again = make()
    constraint = filled(again, tmp_path, batch, **ASKED[asked])
    loss = loss_of(constraint, moved(again), batch)
    loss.backward()
    assert constraint.record.receipt.reference == "table"
    assert loss.item() == pytest.approx(expected.item(), rel=HALF, abs=3e-6)
    found, wanted = constraint.metrics(), online.metrics()
    assert found == pytest.approx(wanted, rel=HALF, abs=3e-6)
    if asked.startswith("easing"):
        assert 0 < found["pact/eased"] < 1
    gradients = [(a.grad, b.grad) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    largest = max(float(a.abs().max()) for a, _ in gradients if a is not None)
    for a, b in gradients:
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=5e-3 * largest)


def test_after_filling_no_reference_runs(tmp_path, monkeypatch):
    model = adapted()
    constraint = filled(model, tmp_path)
    monkeypatch.setattr(Source, "session", None)
    monkeypatch.setattr(Source, "hidden", None)
    for _ in range(2):
        loss_of(constraint, moved(model), a_batch())
    assert constraint.metrics()["pact/divergence"] > 0


@pytest.mark.parametrize("layout", [left_padded, lambda: {k: v.flip(0) for k, v in a_batch().items()}])
def test_padding_and_order_do_not_matter(tmp_path, layout):
    """Clause C7.4: the key is of the content."""
    constraint = filled(model := full(), tmp_path)
    moved(model)
    assert loss_of(constraint, model, layout()).item() == pytest.approx(
        loss_of(constraint, model, a_batch()).item(), rel=1e-4
    )
    assert constraint.reference.table.documents == 3


def test_packed_rows_find_documents_that_were_stored_apart(tmp_path):
    constraint = filled(model := full(), tmp_path, *documents())
    moved(model)
    count = int((packed()["labels"] != -100).sum())
    whole = loss_of(constraint, model, packed()).item()
    parts = sum(loss_of(constraint, model, one, Step(2, 3, count)).item() for one in documents())
    assert whole == pytest.approx(parts, rel=1e-4)


def test_filling_again_computes_nothing_and_a_second_constraint_finds_it(tmp_path):
    constraint = filled(model := full(), tmp_path, a_batch(0))
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    constraint.fill([a_batch(0)], progress=False)
    assert not calls
    constraint.fill([a_batch(0), a_batch(1)], progress=False)
    assert len(calls) == 1
    handle.remove()
    assert constraint.reference.table.documents == 6
    other = adapted()  # the same aligned model
    found = PactConstraint(other, TOKENIZER, held(tmp_path))
    assert found.record.receipt.table == constraint.record.receipt.table
    loss_of(found, moved(other), a_batch(1))
    assert found.metrics()["pact/divergence"] > 0


def test_the_models_flags_and_the_random_state_stay(tmp_path):
    model = tiny_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    constraint = PactConstraint(model, TOKENIZER, held(tmp_path))
    state = torch.get_rng_state()
    constraint.fill([a_batch()], progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags


def test_the_batch_given_to_watch_changes_nothing(tmp_path):
    constraint = filled(model := full(), tmp_path, a_batch(0), a_batch(1))
    moved(model)
    losses = []
    for watched in (None, a_batch(0), a_batch(1)):  # none, an equal one, another one
        with constraint.watch(watched):
            model(**a_batch(0))
        losses.append(constraint.loss(a_batch(0)).item())
    batch = a_batch(0)
    with constraint.watch(batch):
        model(**batch)
    with_ids = constraint.loss({"labels": batch["labels"]}).item()  # the ids are those that were watched
    assert losses == [with_ids] * 3


def test_no_response_adds_nothing(tmp_path):
    constraint = filled(model := full(), tmp_path, without_response(a_batch()), a_batch())
    loss = loss_of(constraint, model, without_response(a_batch()), Step(1, tokens=7))
    assert loss.item() == 0.0
    loss.backward()


# --- a document that is not in the table ---


def test_a_missing_document_is_computed_while_there_is_an_aligned_model(tmp_path, caplog):
    model, plain = adapted(), adapted()
    constraint = filled(model, tmp_path, a_batch(0))
    online = PactConstraint(plain, TOKENIZER, held())
    moved(model), moved(plain)
    for _ in range(2):
        assert loss_of(constraint, model, a_batch(1)).item() == loss_of(online, plain, a_batch(1)).item()
    assert caplog.text.count("some documents are not in the table") == 1


def test_a_missing_document_stops_full_fine_tuning_and_is_named(tmp_path):
    constraint = filled(model := full(), tmp_path, a_batch(0))
    batch = {name: torch.cat([value, a_batch(1)[name]]) for name, value in a_batch(0).items()}
    text = TOKENIZER.decode(batch["input_ids"][3, :8])
    with pytest.raises(StoreError, match=r"document 3 of the batch is not in the table") as error:
        loss_of(constraint, model, batch)
    assert repr(text)[1:-1] in str(error.value)


def test_evaluation_before_and_after_the_first_step(tmp_path, caplog):
    constraint = PactConstraint(model := full(), TOKENIZER, held(tmp_path))
    assert measured(constraint, model, a_batch(3))["pact/divergence"] == pytest.approx(0, abs=1e-9)
    constraint.fill([a_batch(0)], progress=False)
    loss_of(constraint, moved(model), a_batch(0))
    assert measured(constraint, model, a_batch(0))["pact/divergence"] > 0
    assert measured(constraint, model, a_batch(3)) == {}
    assert "no longer the aligned one that could compute what is missing; `pact/*` is left out" in caplog.text
    assert measured(constraint, model, a_batch(0))["pact/eased"] > 0


def test_a_missing_document_where_the_parameters_are_sharded(tmp_path, caplog, monkeypatch):
    """The aligned model is there, and only the ranks that miss a document would run it."""
    constraint = filled(model := adapted(), tmp_path, a_batch(0))
    monkeypatch.setattr("pact_plugin.reference.reference.is_sharded", lambda model: True)
    with pytest.raises(
        StoreError, match=r"is not in the table .* sharded over the ranks, of which only some"
    ):
        loss_of(constraint, model, a_batch(1))
    assert measured(constraint, model, a_batch(1)) == {}
    assert "the model's parameters are sharded over the ranks" in caplog.text
    assert "no longer the aligned one" not in caplog.text


# --- what must not pass in silence ---


def test_once_training_has_begun_the_model_fills_nothing(tmp_path):
    constraint = filled(model := full(), tmp_path / "a", a_batch(0))
    assert constraint.reference.can_fill
    loss_of(constraint, model, a_batch(0))
    constraint.fill([a_batch(0)], progress=False)
    assert not constraint.reference.can_fill
    with pytest.raises(StoreError, match=r"document of batch 1 is not in the table.*no longer the aligned"):
        constraint.fill([a_batch(0), a_batch(1)], progress=False)

    late = PactConstraint(model := full(), TOKENIZER, held(tmp_path / "b"))
    moved(model)
    with pytest.raises(ReferenceModelError, match="weights have changed since"):
        late.fill([a_batch(0)], progress=False)
    assert not list((tmp_path / "b").glob("*.shard"))


def test_with_a_new_adapter_it_fills_at_any_time(tmp_path):
    constraint = filled(model := adapted(), tmp_path, a_batch(0))
    loss_of(constraint, moved(model), a_batch(0))
    assert constraint.reference.can_fill
    constraint.fill([a_batch(1)], progress=False)
    before = filled(adapted(), tmp_path / "fresh", a_batch(1))
    found, wanted = (measured(one, one.model, a_batch(1))["pact/eased"] for one in (constraint, before))
    assert found == wanted > 0


def test_a_resumed_run_needs_the_table_that_it_began_with(tmp_path):
    first = filled(full(), tmp_path / "a")
    loss_of(first, first.model, a_batch())
    first.record.write(tmp_path / "checkpoint")
    receipt = Receipt.read(tmp_path / "checkpoint")
    after_training = moved(full())
    with pytest.raises(
        StoreError, match=r"advanced.store=.*predictions of another model, or of this one after training"
    ):
        PactConstraint(after_training, TOKENIZER, held(tmp_path / "a"))
    foreign = PactConstraint(after_training, TOKENIZER, held(tmp_path / "b"))
    with pytest.raises(ReceiptError, match="another aligned model"):
        foreign.record.receipt.resume(receipt)
    lost = PactConstraint(full(), TOKENIZER, held(tmp_path / "c"))
    lost.record.receipt.resume(receipt)
    with pytest.raises(StoreError, match="not in the table"):
        lost.fill([a_batch()], progress=False)


@pytest.mark.parametrize(("make", "name"), [(full, "copy"), (adapted, "adapter_off")])
def test_without_a_folder_there_is_nothing_to_fill(make, name):
    online = PactConstraint(make(), TOKENIZER, held())
    assert not online.reference.can_fill
    with pytest.raises(ConfigError, match=rf"no table to fill \(reference: {name}\).*advanced: \{{store"):
        online.fill([a_batch()])


def test_documents_that_are_more_than_their_token_ids(tmp_path):
    constraint = PactConstraint(full(), TOKENIZER, held(tmp_path))
    with pytest.raises(StoreError, match=r"pixel_values: .*token ids alone"):
        constraint.fill([a_batch() | {"pixel_values": torch.ones(3, 2, 2)}], progress=False)
    constraint.fill([a_batch() | {"token_type_ids": torch.zeros(3, 12, dtype=torch.long)}], progress=False)
    assert constraint.reference.table.documents == 3
