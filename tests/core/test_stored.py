"""The stored reference in a bespoke loop: filled once, then equal to a reference that is run in every step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_constraint import TOKENIZER, TOKENS, a_batch, moved
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.errors import ConfigError, ReceiptError, ReferenceModelError, StoreError
from pact_plugin.run.receipt import Receipt

HALF = 2e-3
"""Relative error of a loss whose reference is rounded to float16."""


def full():
    return tiny_model(attn_implementation="eager")


def lora():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(full(), config)


def trained_lora():
    model = lora()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    return model


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
    batch = a_batch(rows=2, width=16)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, [0, 1, 5, 6, 7, 12]] = -100
    return batch


LAYOUTS = [a_batch, left_padded, packed, padding_free, multi_turn]


def loss_of(constraint, model, batch) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if not name.startswith("cu_seq_lens")}
    with constraint.watch(batch):
        model(**inputs)
    return constraint.loss(batch)


def settings(**changes) -> PactConfig:
    return PactConfig(**({"safety_tokens": TOKENS, "weight": 1.5, "anchors": 0} | changes))


@pytest.mark.parametrize("first_n", ["all", 2])
@pytest.mark.parametrize("objective", ["confidence", "published"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [full, lora, trained_lora])
def test_stored_equals_online_to_rounding(tmp_path, make, layout, objective, first_n):
    """Clauses C7.4 and C7.6."""
    batch = layout()
    common = {"objective": objective, "first_n": first_n}
    online = PactConstraint(model := make(), TOKENIZER, settings(**common))
    expected = loss_of(online, moved(model), batch)
    expected.backward()

    again = make()
    constraint = PactConstraint(again, TOKENIZER, settings(reference="stored", store=tmp_path, **common))
    constraint.fill([batch], progress=False)
    loss = loss_of(constraint, moved(again), batch)
    loss.backward()
    assert constraint.receipt.reference == "stored"
    assert loss.item() == pytest.approx(expected.item(), rel=HALF, abs=1e-6)
    gradients = [(a.grad, b.grad) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    largest = max(float(a.abs().max()) for a, _ in gradients if a is not None)
    for a, b in gradients:
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=5e-3 * largest)


def test_after_filling_no_reference_runs(tmp_path, monkeypatch):
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    constraint.fill([a_batch()], progress=False)
    monkeypatch.setattr(type(constraint.reference), "session", None)
    monkeypatch.setattr(type(constraint.reference), "hidden", None)
    for _ in range(2):
        loss_of(constraint, moved(model), a_batch())
    assert constraint.metrics()["pact/divergence"] > 0


@pytest.mark.parametrize("layout", [left_padded, lambda: {k: v.flip(0) for k, v in a_batch().items()}])
def test_padding_and_order_do_not_matter(tmp_path, layout):
    """Clause C7.4: the key is of the content."""
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    constraint.fill([a_batch()], progress=False)
    moved(model)
    assert loss_of(constraint, model, layout()).item() == pytest.approx(
        loss_of(constraint, model, a_batch()).item(), rel=1e-4
    )
    assert constraint.stored.store.documents == 3


def test_packed_rows_find_documents_that_were_stored_apart(tmp_path):
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    constraint.fill(documents(), progress=False)
    moved(model)
    count = int((packed()["labels"] != -100).sum())
    whole = loss_of(constraint, model, packed()).item()
    parts = 0.0
    for document in documents():
        with constraint.watch():
            model(**document)
        parts += constraint.loss(document, num_items_in_batch=count).item()
    assert whole == pytest.approx(parts, rel=1e-4)


def test_filling_again_computes_nothing_and_a_second_constraint_finds_it(tmp_path):
    config = settings(reference="stored", store=tmp_path)
    model = full()
    constraint = PactConstraint(model, TOKENIZER, config)
    constraint.fill([a_batch(0)], progress=False)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    constraint.fill([a_batch(0)], progress=False)
    assert not calls
    constraint.fill([a_batch(0), a_batch(1)], progress=False)
    assert len(calls) == 1
    handle.remove()
    assert constraint.stored.store.documents == 6
    other = lora()  # the same aligned model
    found = PactConstraint(other, TOKENIZER, config)
    assert found.receipt.store == constraint.receipt.store
    loss_of(found, moved(other), a_batch(1))
    assert found.metrics()["pact/divergence"] > 0


def test_the_models_flags_and_the_random_state_stay(tmp_path):
    model = tiny_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    state = torch.get_rng_state()
    constraint.fill([a_batch()], progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags


def test_the_batch_given_to_watch_changes_nothing(tmp_path):
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    constraint.fill([a_batch(0), a_batch(1)], progress=False)
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
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    empty = a_batch() | {"labels": torch.full_like(a_batch()["labels"], -100)}
    constraint.fill([empty, a_batch()], progress=False)
    with constraint.watch():
        model(**a_batch())
    loss = constraint.loss(empty, num_items_in_batch=7)
    assert loss.item() == 0.0
    loss.backward()


# --- a document that is not stored ---


def test_a_missing_document_is_computed_while_there_is_an_aligned_model(tmp_path, caplog):
    model, plain = lora(), lora()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    constraint.fill([a_batch(0)], progress=False)
    online = PactConstraint(plain, TOKENIZER, settings(reference="adapter_off"))
    moved(model)
    moved(plain)
    for _ in range(2):
        assert loss_of(constraint, model, a_batch(1)).item() == loss_of(online, plain, a_batch(1)).item()
    assert caplog.text.count("some documents are not stored") == 1


def test_a_missing_document_stops_full_fine_tuning_and_is_named(tmp_path):
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    constraint.fill([a_batch(0)], progress=False)
    batch = {name: torch.cat([value, a_batch(1)[name]]) for name, value in a_batch(0).items()}
    text = TOKENIZER.decode(batch["input_ids"][3, :8])
    with pytest.raises(StoreError, match=r"document 3 of the batch") as error:
        loss_of(constraint, model, batch)
    assert repr(text)[1:-1] in str(error.value)


def test_evaluation_before_and_after_the_first_step(tmp_path, caplog):
    def evaluated(batch):
        with constraint.watch(), torch.no_grad():
            model(**batch)
        constraint.observe(batch)
        return constraint.metrics("eval")

    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path))
    assert evaluated(a_batch(3))["pact/divergence"] == pytest.approx(0, abs=1e-9)
    constraint.fill([a_batch(0)], progress=False)
    loss_of(constraint, moved(model), a_batch(0))
    assert evaluated(a_batch(0))["pact/divergence"] > 0
    assert evaluated(a_batch(3)) == {}
    assert "left out of this evaluation" in caplog.text
    assert evaluated(a_batch(0))["pact/positions"] > 0


# --- what must not pass in silence ---


def test_once_training_has_begun_the_model_fills_nothing(tmp_path):
    model = full()
    constraint = PactConstraint(model, TOKENIZER, settings(reference="stored", store=tmp_path / "a"))
    constraint.fill([a_batch(0)], progress=False)
    loss_of(constraint, model, a_batch(0))
    constraint.fill([a_batch(0)], progress=False)
    with pytest.raises(StoreError, match=r"document of batch 1 is not stored.*no longer the aligned"):
        constraint.fill([a_batch(0), a_batch(1)], progress=False)

    late = PactConstraint(full_model := full(), TOKENIZER, settings(reference="stored", store=tmp_path / "b"))
    moved(full_model)
    with pytest.raises(ReferenceModelError, match="weights have changed since"):
        late.fill([a_batch(0)], progress=False)
    assert not list((tmp_path / "b").glob("*.lmdb"))


def test_a_resumed_run_needs_the_store_that_it_began_with(tmp_path):
    def constraint(store, model=None):
        built = PactConstraint(
            model or full(), TOKENIZER, settings(reference="stored", store=tmp_path / store)
        )
        return built

    first = constraint("a")
    first.fill([a_batch()], progress=False)
    loss_of(first, first.model, a_batch())
    first.write_receipt(tmp_path / "checkpoint")
    trained = moved(full())
    with pytest.raises(
        StoreError, match=r"store=.*predictions of another model, or of this one after training"
    ):
        constraint("a", trained)
    foreign = constraint("b", trained)
    with pytest.raises(ReceiptError, match="store"):
        foreign.receipt.resume(Receipt.read(tmp_path / "checkpoint"))
    lost = constraint("c")
    lost.receipt.resume(Receipt.read(tmp_path / "checkpoint"))
    with pytest.raises(StoreError, match="not stored"):
        lost.fill([a_batch()], progress=False)


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="store"):
        PactConstraint(full(), TOKENIZER, settings(reference="stored"))
    with pytest.raises(ConfigError, match=r"store=.*reference: frozen_copy"):
        settings(reference="frozen_copy", store=tmp_path)
    online = PactConstraint(full(), TOKENIZER, settings())
    assert online.reference.kind == "frozen_copy"
    with pytest.raises(ConfigError, match=r"reference: frozen_copy.*reference: stored"):
        online.fill([a_batch()])
    assert PactConstraint(full(), TOKENIZER, settings(store=tmp_path)).reference.kind == "stored"


def test_documents_that_are_more_than_their_token_ids(tmp_path):
    constraint = PactConstraint(full(), TOKENIZER, settings(reference="stored", store=tmp_path))
    with pytest.raises(StoreError, match=r"pixel_values: .*token ids alone"):
        constraint.fill([a_batch() | {"pixel_values": torch.ones(3, 2, 2)}], progress=False)
    constraint.fill([a_batch() | {"token_type_ids": torch.zeros(3, 12, dtype=torch.long)}], progress=False)
