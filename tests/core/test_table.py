"""The table: what comes back, how precisely, and after which accidents (spec/PACT.md, clauses C7.4 to C7.7)."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fill_slowly import batches, constraint, filling
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import TERMS, TOKENIZER, a_batch, adapted, loss_of, moved
from loop import settings as config
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from tiny import tiny_model

from pact_plugin import PactConstraint, confidence_divergence, published_divergence
from pact_plugin.data.documents import Document, documents_of
from pact_plugin.data.positions import positions_of
from pact_plugin.errors import NonFiniteError, ReferenceModelError, StoreError
from pact_plugin.math.easing import eased_share
from pact_plugin.math.gate import gate_end
from pact_plugin.model.fingerprint import model_fingerprint
from pact_plugin.model.linear import LinearFunction
from pact_plugin.reference.columns import Aligned, Columns
from pact_plugin.reference.header import Header
from pact_plugin.reference.table import Table

CPU = torch.device("cpu")
IDS = (3, 4, 5, 9)
HELD = (Columns("logprobs", IDS), Columns("log_rest", IDS))
ODDS = Columns("linear", (), linear=LinearFunction(torch.tensor([1.0, -2.0]), 0.5))
END = gate_end(8, 8.0, 1.0)


def table(folder: Path, columns: tuple[Columns, ...] = HELD, **changes: str) -> Table:
    named = {"model": "m", "tokenizer": "t"} | changes
    return Table(folder, Header.of(columns=columns, **named), columns)


def document(positions: int, number: int = 0, index: list[int] | None = None) -> Document:
    columns = np.arange(1, positions + 1)
    where = columns - 1 if index is None else np.array(index)
    return Document(number.to_bytes(16, "little"), np.zeros(positions + 1, np.int64), columns, where)


def stored(folder: Path, content: dict[Columns, torch.Tensor], one: Document) -> Aligned:
    """What comes back of one document's predictions."""
    filled = table(folder, tuple(content))
    filled.create()
    with filled.writer(0) as writer:
        writer.put(filled.encoded([(one, content)]))
    filled.refresh()
    found = filled.fetch([one], CPU)
    assert not isinstance(found, list)
    return found


# --- what comes back ---


def buckets(logits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p of all tokens but the last, and log r, in float64."""
    logprobs = torch.from_numpy(logits).log_softmax(-1)
    return logprobs[:, :-1], logprobs[:, -1:]


LOGITS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 1.0, 5.0, 30.0]),  # scale of the logits
    st.sampled_from([-60.0, -8.0, 0.0, 8.0, 60.0]),  # of the rest: from r → 1 to r → 0
    st.integers(1, 20),
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(LOGITS)
def test_the_error_of_stored_columns_is_bounded_p22_c7_6(tmp_path_factory, drawn):
    """C7.6: no stored probability is off by more than 2e-4; D and its gradient accordingly, and e not at all."""
    seed, scale, rest, count = drawn
    random = np.random.default_rng(seed)
    reference, student = (random.normal(0, scale, (16, count + 1)) for _ in range(2))
    reference[:, -1] += -rest
    student[8:] = reference[8:] + random.normal(0, 1e-3, (8, count + 1))  # hardly trained
    logprobs, log_rest = buckets(reference)
    odds = torch.from_numpy(random.normal(0, scale, (16, 1)))
    ids = tuple(range(count))
    columns = [ODDS, *(Columns(kind, ids) for kind in ("logprobs", "log_rest"))]
    exact = dict(zip(columns, (odds.float(), logprobs.float(), log_rest.float()), strict=True))
    found_odds, found, found_rest = stored(
        tmp_path_factory.mktemp("t"), exact, document(16)
    ).values()  # in the order asked
    every, found_every = torch.cat([logprobs, log_rest], 1), torch.cat([found, found_rest], 1)
    error = (found_every.double().exp() - every.exp()).abs()
    assert error.max() <= 2e-4
    assert ((found_every - every).abs() <= 2**-11 * every.abs() + 2**-24).all()
    assert ((found_odds - odds).abs() <= 2**-11 * odds.abs() + 2**-24).all()
    refuses = torch.zeros(16, dtype=torch.bool)
    eased, wanted_eased = (eased_share(one[:, 0].double(), refuses) for one in (found_odds, odds))
    assert torch.equal(eased, wanted_eased)

    logits = torch.from_numpy(student).requires_grad_()
    own = logits.log_softmax(-1)

    def divergence_and_gradient(aligned, rest_of):
        rests = own[:, -1], rest_of.double()[:, 0]
        divergence = confidence_divergence(own[:, :-1], aligned.double(), *rests)
        (gradient,) = torch.autograd.grad(divergence.sum(), logits, retain_graph=True)
        return divergence.detach(), gradient

    wanted, wanted_gradient = divergence_and_gradient(logprobs, log_rest)
    divergence, gradient = divergence_and_gradient(found, found_rest)
    # To first order D moves by Σ δ log(p_ref / p), plus a term of second order in the relative error 2^-11 |log p_ref|.
    relative = every.abs() * 2**-11 + 2**-24
    bound = (error * (every - own.detach()).abs() + every.exp() * relative**2).sum(1)
    assert ((divergence - wanted).abs() <= 2 * bound + 1e-6).all()
    assert (divergence >= 0).all()
    assert (gradient - wanted_gradient).abs().max() <= 2e-4 * (count + 1) + 1e-7


@pytest.mark.parametrize("log_r", [-30.0, -1e-3, -1e-7, -1e-30])
def test_precise_where_the_remainder_vanishes_or_is_everything(tmp_path, log_r):
    log_s = math.log(-math.expm1(log_r)) if log_r < -1e-20 else -69.0
    columns = Columns("logprobs", (3,)), Columns("log_rest", (3,))
    exact = dict(zip(columns, (torch.tensor([[log_s]]), torch.tensor([[log_r]])), strict=True))
    found = stored(tmp_path, exact, document(1))
    assert float(found[columns[1]]) == pytest.approx(log_r, rel=2**-10, abs=1e-7)
    assert float(found[columns[0]]) == pytest.approx(log_s, rel=2**-10, abs=1e-7)


@pytest.mark.parametrize("kind", ["logprobs", "logits"])
def test_a_masked_token_stays_impossible(tmp_path, kind):
    column = Columns(kind, (3, 4))
    found = stored(tmp_path, {column: torch.tensor([[-torch.inf, -0.5]])}, document(1))
    assert found[column].tolist() == [[-torch.inf, -0.5]]


@pytest.mark.parametrize("odds", [7e4, -7e4, 3.0])
def test_log_odds_keep_their_sign_where_float16_ends(tmp_path, odds):
    (found,) = stored(tmp_path, {ODDS: torch.tensor([[odds]])}, document(1))[ODDS].tolist()
    assert found == pytest.approx([max(-65504, min(65504, odds))])


def test_columns_at_other_first_tokens_lie_at_their_own_positions(tmp_path):
    """One document of two responses, of 5 and of 2 tokens."""
    index = [0, 1, 2, 3, 4, 0, 1]
    columns = [replace(ODDS, first=2), Columns("logprobs", IDS, 4), Columns("log_rest", IDS)]
    counts = [4, 6, 7]
    content = {
        one: torch.arange(count * one.width).reshape(count, one.width) / -64
        for one, count in zip(columns, counts, strict=True)
    }
    found = stored(tmp_path, content, document(7, index=index))
    assert list(found) == columns
    assert all(torch.equal(found[one], content[one]) for one in columns)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(LOGITS, st.sampled_from([0.0, 300.0]))
def test_the_error_of_stored_logits_is_bounded_p22_c7_6(tmp_path_factory, drawn, offset):
    """C7.6 for the published objective, also where all logits are far from 0, which moves them (`Columns.kind`)."""
    seed, scale, _, count = drawn
    random = np.random.default_rng(seed)
    positions, opened = 100, END
    student, aligned, post = (
        torch.from_numpy(random.normal(offset, scale, (positions, count))) for _ in range(3)
    )
    columns = Columns("logits", IDS[:1] * count), Columns("logits", IDS[:1] * count, opened, behind=(1,))
    moved_there, moved_post = (one - one.amax(1, keepdim=True) for one in (aligned, post))
    exact = dict(zip(columns, (moved_there.float(), moved_post[:opened].float()), strict=True))
    found = stored(tmp_path_factory.mktemp("t"), exact, document(positions))
    values = found[columns[0]].double()
    found_post = torch.cat([found[columns[1]].double(), values[opened:]])
    weights, index = torch.from_numpy(random.uniform(0.1, 1, count)), torch.arange(positions)
    wanted = published_divergence(student, aligned, post, weights, index)
    got = published_divergence(student, values, found_post, weights, index)
    spread = (aligned - aligned.amax(1, keepdim=True)).abs().amax(1) + (post - aligned).abs().amax(1)
    # A rounded logit can move the n of the gate by one token, and so c by alpha / 4K.
    flips = 2.0 / (4 * count) * (post - aligned).abs().amax(1)
    assert ((got - wanted).abs() <= 4 * (2**-10 * (1 + wanted) * (1 + spread) + flips) + 1e-4).all()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_documents_come_back_in_any_order_and_number(tmp_path_factory, lengths, data):
    filled = table(tmp_path_factory.mktemp("t"))
    filled.create()
    contents = {}
    for rank in (0, 1):  # two files
        with filled.writer(rank) as writer:
            for number in range(rank, len(lengths), 2):
                positions = lengths[number]
                values = torch.full((positions, 4), -float(number)) - torch.arange(positions)[:, None] / 64
                contents[number] = {HELD[0]: values, HELD[1]: values[:, :1]}
                writer.put(filled.encoded([(document(positions, number), contents[number])]))
    filled.refresh()
    order = data.draw(st.lists(st.sampled_from(range(len(lengths))), max_size=8))
    found = filled.fetch([document(lengths[number], number) for number in order], CPU)
    for one, width in zip(HELD, (4, 1), strict=True):
        expected = [torch.zeros(0, width), *(contents[number][one] for number in order)]
        assert torch.equal(found[one], torch.cat(expected))
    assert filled.documents == len(lengths)
    there, absent, more = document(lengths[0], 0), document(1, 99), document(2, 98)
    assert filled.fetch([absent, there], CPU) is None
    assert filled.fetch([there, absent], CPU) is None
    assert filled.lacks([absent, there, more]) == [absent, more]


# --- the key (C7.4) ---


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 4), st.integers(1, 4))
def test_a_documents_key_is_of_its_content_p23_c7_4(seed, left, right, number):
    """Padding on either side, packing and what comes after the last response position change nothing; all else does."""
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(number):
        width = int(random.integers(3, 9))
        ids = random.integers(5, 90, width)
        labels = np.where(random.random(width) < 0.5, ids, -100)
        labels[0], labels[-1] = -100, ids[-1]
        parts.append((ids, labels))

    def keys(ids, labels, **boundaries):
        host = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), **boundaries}
        return [d.key for d in documents_of(host, positions_of(host))]

    alone = [keys(ids[None], labels[None])[0] for ids, labels in parts]
    padded = []
    for ids, labels in parts:
        sides = ((0, 0), (left, right))
        mask = np.pad(np.ones_like(ids)[None], sides)
        more = np.pad(ids[None], sides, constant_values=3), np.pad(labels[None], sides, constant_values=-100)
        padded += keys(*more, attention_mask=torch.from_numpy(mask))
    assert padded == alone
    ids, labels = (np.concatenate([part[side] for part in parts])[None] for side in (0, 1))
    starts = torch.cat([torch.arange(len(part[0])) for part in parts])[None]
    assert keys(ids, labels, position_ids=starts) == alone
    lengths = torch.tensor([0, *(len(part[0]) for part in parts)]).cumsum(0)
    assert keys(ids, labels, cu_seq_lens_q=lengths.int()) == alone
    ids, labels = parts[0]
    for place in range(len(ids)):
        changed, unlabelled = ids.copy(), labels.copy()
        changed[place] += 1
        assert keys(changed[None], labels[None]) != alone[:1]
        if place:
            unlabelled[place] = -100 if labels[place] != -100 else ids[place]
            assert keys(ids[None], unlabelled[None]) != alone[:1]


# --- the header (C7.5) ---


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


def test_a_document_of_another_length(tmp_path):
    values = torch.zeros(3, 4)
    stored(tmp_path, {HELD[0]: values, HELD[1]: values[:, :1]}, document(3))
    with pytest.raises(StoreError, match="a document of 2 positions has 15 numbers"):
        table(tmp_path).fetch([document(2)], CPU)


def test_every_value_and_every_name_counts_in_a_models_fingerprint():
    model = tiny_model()
    known = model_fingerprint(model)
    assert model_fingerprint(tiny_model()) == known
    assert model_fingerprint(tiny_model().to(torch.bfloat16)).values != known.values
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        place = int(torch.randint(parameter.numel(), (), generator=generator))
        flat = parameter.data.view(-1)
        before = flat[place].clone()
        flat[place] = torch.nextafter(before, torch.tensor(9.0))
        assert model_fingerprint(model).values != known.values
        assert model_fingerprint(model).structure == known.structure
        flat[place] = before
        if parameter.shape[0] == parameter.numel() or parameter.shape[0] < 2:
            continue
        rows = parameter.data[:2].clone()
        parameter.data[:2] = rows.flip(0)  # the same values in another order
        assert model_fingerprint(model).values != known.values
        parameter.data[:2] = rows
    assert model_fingerprint(model) == known


def test_what_the_configuration_makes_of_the_weights_counts_too():
    known = model_fingerprint(tiny_model())
    other = model_fingerprint(tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 100.0}))
    assert (other.structure, other.values) != (known.structure, known.values)
    assert other.values != known.values
    same = tiny_model()
    same.config.use_cache, same.config.pad_token_id = False, 3  # as trainers do
    assert model_fingerprint(same) == known
    peft = get_peft_model(tiny_model(), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert model_fingerprint(peft, base_only=True) == known


def test_an_adapter_of_another_scale_is_another_model(tmp_path):
    settings = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False}
    get_peft_model(tiny_model(), LoraConfig(lora_alpha=8, **settings)).save_pretrained(tmp_path)
    known, again, other = (
        model_fingerprint(
            PeftModel.from_pretrained(tiny_model(), tmp_path, config=LoraConfig(lora_alpha=alpha, **settings))
        )
        for alpha in (8, 8, 32)
    )
    assert again == known
    assert other.values != known.values


def test_predictions_without_a_header_are_not_taken_over(tmp_path):
    stored(tmp_path, {HELD[0]: torch.zeros(3, 4), HELD[1]: torch.zeros(3, 1)}, document(3))
    (tmp_path / "header.json").unlink()
    with pytest.raises(StoreError, match=r"without their header\.json.*delete the folder"):
        table(tmp_path)


def test_the_size_of_a_table_is_known_beforehand(tmp_path):
    batch = a_batch()
    built = PactConstraint(tiny_model(), TOKENIZER, config(store=tmp_path, anchors=False))
    built.fill([batch], progress=False)
    documents = documents_of(batch, positions_of(batch))
    known = sum(built.reference.table.bytes_of(one) for one in documents)
    (file,) = tmp_path.glob("*.shard")
    assert known < file.stat().st_size < known + 100  # what a file begins and ends with


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


class InBuffers(torch.nn.Module):
    """A linear layer as GPTQ and AWQ have it: its weight lies in buffers."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", (linear.weight.detach() * 2**27).to(torch.int32))
        self.register_buffer("scales", torch.tensor(2.0**-27))
        self.register_buffer("workspace", torch.zeros(2), persistent=False)


def with_weights_in_buffers() -> torch.nn.Module:
    model = tiny_model()
    for layer in model.model.layers:
        layer.mlp.down_proj = InBuffers(layer.mlp.down_proj)
    return model


@pytest.mark.parametrize("any_type", [False, True])
def test_weights_in_buffers_count_in_a_models_fingerprint(any_type):
    model = with_weights_in_buffers()
    known = model_fingerprint(model, any_type=any_type)
    assert model_fingerprint(with_weights_in_buffers(), any_type=any_type) == known
    layer = model.model.layers[1].mlp.down_proj
    layer.workspace += 1  # what a kernel leaves behind is not saved
    assert model_fingerprint(model, any_type=any_type) == known
    place = layer.qweight.abs().argmax()
    assert layer.qweight.view(-1)[place].abs() > 2**24, "float32 would round it"
    for values, change in ((layer.qweight.view(-1)[place], 1), (layer.scales, 2.0**-40)):
        values += change
        assert model_fingerprint(model, any_type=any_type).values != known.values
        assert model_fingerprint(model, any_type=any_type).structure == known.structure
        values -= change
    assert model_fingerprint(model, any_type=any_type) == known
    peft = get_peft_model(model, VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert [name for name in peft.state_dict() if "vera_A" in name], "it has buffers of its own"
    assert model_fingerprint(peft, base_only=True, any_type=any_type) == known


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]),
        LoraConfig(r=4, use_dora=True, trainable_token_indices=[1, 2]),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        VeraConfig(r=4, target_modules=["q_proj"]),
        AdaLoraConfig(total_step=9, target_modules=["q_proj"]),
    ],
    ids=lambda config: config.peft_type.value,
)
@pytest.mark.parametrize("name", ["default", "model", "weight"])
def test_whatever_an_adapter_is_named_the_model_below_counts(config, name):
    model = tiny_model(tie_word_embeddings=False)
    known = model_fingerprint(model)
    peft = get_peft_model(model, config, adapter_name=name)
    assert model_fingerprint(peft, base_only=True) == known
    assert model_fingerprint(peft).structure != known.structure
    model.model.norm.weight.data += 1
    assert model_fingerprint(peft, base_only=True).values != known.values


# --- accidents and company ---


def fetched(built: PactConstraint, batch) -> Aligned:
    found = built.reference.table.fetch(documents_of(batch, positions_of(batch)), CPU)
    assert not isinstance(found, list)
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


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    built = constraint(tmp_path)
    with pytest.raises(
        StoreError, match=r"it needs about .* GiB, and 0.0 GiB are free.*anchors alone.*`first: 16`"
    ):
        built.fill(batches(), tokens_per_pass=20, progress=False)


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
