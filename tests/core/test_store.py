"""The store: what comes back, how precisely, and after which accidents (spec/PACT.md, clauses C7.4 to C7.7)."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fill_slowly import batches, constraint
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from test_constraint import TOKENIZER, TOKENS, a_batch, moved
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint, confidence_divergence, published_divergence
from pact_plugin.data.documents import Document, documents_of
from pact_plugin.data.positions import positions_of
from pact_plugin.errors import NonFiniteError, StoreError
from pact_plugin.model.fingerprint import model_fingerprint
from pact_plugin.reference.header import Header
from pact_plugin.reference.passes import Aligned
from pact_plugin.reference.shards import Writer
from pact_plugin.reference.table import Store
from pact_plugin.terms.promptfree import gate_end

CPU = torch.device("cpu")


def header(objective: str = "confidence", count: int = 4, **changes) -> Header:
    values = {"model": "m", "tokenizer": "t", "tokens": "s", "count": count, "objective": objective}
    if objective == "published":
        values["settings"] = {"header": [1], "gate_end": gate_end(8, 8.0, 1.0)}
    return Header(**({"settings": {}, "first_n": None} | values | changes))


def document(positions: int, number: int = 0) -> Document:
    columns = np.arange(1, positions + 1)
    return Document(number.to_bytes(16, "little"), np.zeros(positions + 1, np.int64), columns, columns - 1)


def stored(folder: Path, kind: Header, content: Aligned, positions: int) -> Aligned:
    """What comes back of one document's predictions."""
    store = Store(folder, kind)
    store.create()
    with Writer(store.folder, store.header, 0) as writer:
        writer.put([(document(positions), content)])
    store.refresh()
    found = store.fetch([document(positions)], CPU)
    assert isinstance(found, Aligned)
    return found


# --- what comes back ---


def buckets(logits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p of all tokens but the last, and log r, in float64."""
    logprobs = torch.from_numpy(logits).log_softmax(-1)
    return logprobs[:, :-1], logprobs[:, -1]


LOGITS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 1.0, 5.0, 30.0]),  # scale of the logits
    st.sampled_from([-60.0, -8.0, 0.0, 8.0, 60.0]),  # of the rest: from r → 1 to r → 0
    st.integers(1, 20),
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(LOGITS)
def test_the_error_of_a_stored_confidence_is_bounded_p22_c7_6(tmp_path_factory, drawn):
    """C7.6: no stored probability is off by more than 2e-4, D and its gradient accordingly."""
    seed, scale, rest, count = drawn
    random = np.random.default_rng(seed)
    reference, student = (random.normal(0, scale, (16, count + 1)) for _ in range(2))
    reference[:, -1] += -rest
    student[8:] = reference[8:] + random.normal(0, 1e-3, (8, count + 1))  # hardly trained
    logprobs, log_rest = buckets(reference)
    exact = Aligned(logprobs.float(), log_rest=log_rest.float())
    found = stored(tmp_path_factory.mktemp("s"), header(count=count), exact, 16)
    error = torch.cat(
        [
            found.values.double().exp() - logprobs.exp(),
            (found.log_rest.double().exp() - log_rest.exp())[:, None],
        ],
        1,
    )
    assert error.abs().max() <= 2e-4

    logits = torch.from_numpy(student).requires_grad_()
    own = logits.log_softmax(-1)

    def divergence_and_gradient(aligned, rest_of):
        divergence = confidence_divergence(own[:, :-1], aligned.double(), own[:, -1], rest_of.double())
        (gradient,) = torch.autograd.grad(divergence.sum(), logits, retain_graph=True)
        return divergence.detach(), gradient

    wanted, wanted_gradient = divergence_and_gradient(logprobs, log_rest)
    divergence, gradient = divergence_and_gradient(found.values, found.log_rest)
    # To first order D moves by Σ δ log(p_ref / p), plus a term of second order in the relative error 2^-11 |log p_ref|.
    all_reference = torch.cat([logprobs, log_rest[:, None]], 1)
    relative = all_reference.abs() * 2**-11 + 2**-24
    bound = (error.abs() * (all_reference - own.detach()).abs() + all_reference.exp() * relative**2).sum(1)
    assert ((divergence - wanted).abs() <= 2 * bound + 1e-6).all()
    assert (divergence >= 0).all()
    assert (gradient - wanted_gradient).abs().max() <= 2e-4 * (count + 1) + 1e-7


@pytest.mark.parametrize("log_r", [-30.0, -1e-3, -1e-7, -1e-30])
def test_precise_where_the_remainder_vanishes_or_is_everything(tmp_path, log_r):
    log_s = math.log(-math.expm1(log_r)) if log_r < -1e-20 else -69.0
    exact = Aligned(torch.tensor([[log_s]]), log_rest=torch.tensor([log_r]))
    found = stored(tmp_path, header(count=1), exact, 1)
    assert float(found.log_rest) == pytest.approx(log_r, rel=2**-10, abs=1e-7)
    assert float(found.values) == pytest.approx(log_s, rel=2**-10, abs=1e-7)


def test_a_masked_token_stays_impossible(tmp_path):
    exact = Aligned(torch.tensor([[-torch.inf, -0.5]]), log_rest=torch.tensor([-0.93]))
    found = stored(tmp_path / "a", header(count=2), exact, 1)
    assert found.values[0, 0] == -torch.inf
    logits = torch.tensor([[-torch.inf, 300.0]])
    found = stored(tmp_path / "b", header("published", count=2), Aligned(logits, post=logits), 1)
    assert found.values.tolist() == found.post.tolist() == [[-torch.inf, 0.0]]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(LOGITS, st.sampled_from([0.0, 300.0]))
def test_the_error_of_stored_logits_is_bounded(tmp_path_factory, drawn, offset):
    """C7.6 for the published objective, also where all logits are far from 0."""
    seed, scale, _, count = drawn
    random = np.random.default_rng(seed)
    positions = 100
    student, aligned, post = (
        torch.from_numpy(random.normal(offset, scale, (positions, count))) for _ in range(3)
    )
    exact = Aligned(aligned.float(), post=post.float())
    found = stored(tmp_path_factory.mktemp("s"), header("published", count), exact, positions)
    weights, index = torch.from_numpy(random.uniform(0.1, 1, count)), torch.arange(positions)
    end = gate_end(8, 8.0, 1.0)
    torch.testing.assert_close(found.post[end:], found.values[end:])
    wanted = published_divergence(student, aligned, post, weights, index)
    got = published_divergence(student, found.values.double(), found.post.double(), weights, index)
    spread = (aligned - aligned.amax(1, keepdim=True)).abs().amax(1) + (post - aligned).abs().amax(1)
    # A rounded logit can move the n of the gate by one token, and so c by alpha / 4K.
    flips = 2.0 / (4 * count) * (post - aligned).abs().amax(1)
    assert ((got - wanted).abs() <= 4 * (2**-10 * (1 + wanted) * (1 + spread) + flips) + 1e-4).all()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_documents_come_back_in_any_order_and_number(tmp_path_factory, lengths, data):
    store = Store(tmp_path_factory.mktemp("s"), header(count=2))
    store.create()
    contents = {}
    for rank in (0, 1):  # two files
        with Writer(store.folder, store.header, rank) as writer:
            for number in range(rank, len(lengths), 2):
                positions = lengths[number]
                values = torch.full((positions, 2), -float(number)) - torch.arange(positions)[:, None] / 64
                contents[number] = Aligned(values, log_rest=values[:, 0])
                writer.put([(document(positions, number), contents[number])])
    store.refresh()
    order = data.draw(st.lists(st.sampled_from(range(len(lengths))), max_size=8))
    found = store.fetch([document(lengths[number], number) for number in order], CPU)
    expected = torch.cat([torch.zeros(0, 2), *(contents[number].values for number in order)])
    assert torch.equal(found.values, expected)
    absent = store.fetch([document(3, 99), document(lengths[0], 0), document(2, 98)], CPU)
    assert absent == [0, 2]
    assert store.documents == len(lengths)


def test_a_file_grows_beyond_its_first_size(tmp_path, monkeypatch):
    monkeypatch.setattr("pact_plugin.reference.shards._MAP_SIZE", 2**16)
    store = Store(tmp_path, header(count=50))
    store.create()
    values = torch.zeros(1000, 50)
    with Writer(store.folder, store.header, 0) as writer:
        for number in range(20):
            writer.put([(document(1000, number), Aligned(values, log_rest=values[:, 0]))])
    store.refresh()
    assert store.documents == 20
    assert 20 * 1000 * 51 * 2 < store.bytes < 1.1 * 20 * 1000 * 51 * 2


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
    ("change", "words"),
    [
        ({"model": "other"}, "another model, or of this one after training"),
        ({"tokenizer": "other"}, "another tokenizer"),
        ({"tokens": "other"}, "other safety tokens"),
        ({"objective": "published", "settings": {"header": [1], "gate_end": 3}}, "another objective"),
        ({"first_n": 8}, "another `first_n`"),
        ({"version": 2}, "another version of the format"),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path, change, words):
    Store(tmp_path, header()).create()
    Store(tmp_path, header())
    with pytest.raises(
        StoreError, match=rf"store='{tmp_path}': .*{words}.*Delete the folder, or name another"
    ):
        Store(tmp_path, header(**change))


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"model": "m"}'])
def test_a_damaged_header(tmp_path, content):
    (tmp_path / "header.json").write_text(content)
    with pytest.raises(StoreError, match=r"store=.*Delete the folder"):
        Store(tmp_path, header())


def test_damaged_files(tmp_path):
    store = Store(tmp_path, header())
    store.create()
    (tmp_path / "x.lmdb").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(StoreError, match=r"damaged.*Delete that file"):
        store.refresh()
    (tmp_path / "x.lmdb").unlink()
    values = torch.zeros(3, 4)
    with Writer(store.folder, store.header, 0) as writer:
        writer.put([(document(3), Aligned(values, log_rest=values[:, 0]))])
    store.refresh()
    with pytest.raises(StoreError, match="a document of 2 positions has 15 numbers"):
        store.fetch([document(2)], CPU)


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


# --- accidents and company ---


def test_killed_while_filling_the_next_run_fills_what_is_missing(tmp_path):
    script = Path(__file__).parents[1] / "support" / "fill_slowly.py"
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(12):
            assert process.stdout.readline() == "pass\n"
        with pytest.raises(StoreError, match="another run is filling it"):
            constraint(tmp_path).fill(batches(), progress=False)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.part"))

    built, passes = constraint(tmp_path), []
    built.model.register_forward_hook(lambda *_: passes.append(1))
    built.fill(batches(), tokens_per_pass=1, progress=False)
    assert 0 < len(passes) <= 40 - 10
    assert built.stored.store.documents == 40
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".lmdb"}
    fresh = constraint(tmp_path / "fresh")
    fresh.fill(batches(), progress=False)
    for batch in batches():
        documents = documents_of(batch, positions_of(batch))
        one, two = (which.stored.store.fetch(documents, CPU) for which in (built, fresh))
        torch.testing.assert_close(one.values, two.values, rtol=2**-9, atol=1e-6)


def test_killed_before_anything_was_committed(tmp_path):
    store = Store(tmp_path, header())
    store.create()
    (tmp_path / "00000-abc.part").write_bytes(b"")
    store.create()
    store.refresh()
    assert store.documents == 0
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]


def _read(folder: str, number: int, queue) -> None:
    built = constraint(folder)
    total = 0.0
    for _ in range(20):
        for batch in batches(number):
            found = built.stored.store.fetch(documents_of(batch, positions_of(batch)), CPU)
            total += float(found.values.double().sum())
    queue.put(total)


def test_several_processes_read_while_another_one_adds(tmp_path):
    built = constraint(tmp_path)
    built.fill(batches(20), progress=False)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    readers = [context.Process(target=_read, args=(str(tmp_path), 20, queue)) for _ in range(2)]
    for reader in readers:
        reader.start()
    built.fill(batches(40), tokens_per_pass=1, progress=False)
    totals = [queue.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join()
    assert totals[0] == totals[1] != 0
    assert built.stored.store.documents == 40


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    config = PactConfig(safety_tokens=TOKENS, reference="stored", store=tmp_path)
    built = PactConstraint(tiny_model(), TOKENIZER, config)
    with pytest.raises(StoreError, match=r"it needs about .* GiB, and 0.0 GiB are free.*`first_n`"):
        built.fill(batches(), tokens_per_pass=20, progress=False)


def test_nan_in_the_aligned_model_is_not_stored(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    config = PactConfig(safety_tokens=TOKENS, reference="stored", store=tmp_path)
    built = PactConstraint(model, TOKENIZER, config)
    model.base_model.model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        built.fill([a_batch()], progress=False)
    assert not list(tmp_path.glob("*.lmdb"))


def test_an_error_while_filling_keeps_what_was_computed(tmp_path):
    built = constraint(tmp_path)

    def stopping():
        yield from batches(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built.fill(stopping(), tokens_per_pass=10, progress=False)
    assert json.loads((tmp_path / "header.json").read_text())["format"] == "pact-store"
    assert built.model.training is False
    again = constraint(tmp_path)
    again.fill(batches(3), progress=False)
    moved(again.model)
    with again.watch():
        again.model(**batches(3)[0])
    again.loss(batches(3)[0])
