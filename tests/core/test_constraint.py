"""PactConstraint in a bespoke loop, against the executable reference on full logits."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from loop import (
    FEW_ANCHORS,
    POSITIVE,
    TERMS,
    TOKENIZER,
    TOKENS,
    a_batch,
    adapted,
    calls_of_sources,
    constrained,
    gradients,
    loss_of,
    measured,
    moved,
    probe_of,
    settings,
    without_response,
)
from pact_spec import reference as spec
from tiny import tiny_model, with_float32_norms

from pact_plugin import PactConfig, PactConstraint, SafetyTokens
from pact_plugin.errors import (
    ConfigError,
    HiddenStatesNotSeenError,
    ModelStructureError,
    NonFiniteError,
    NoResponseError,
    PactError,
    ReferenceModelError,
    ShapeError,
    TokenizerMismatchError,
)
from pact_plugin.judge import is_refusal
from pact_plugin.model.head import LanguageHead
from pact_plugin.terms.step import Step


def logits_of(model, **inputs) -> np.ndarray:
    with torch.no_grad():
        return model(**inputs).logits.double().numpy()


def positions(labels: torch.Tensor) -> list[tuple[int, int, int]]:
    found = []
    for row, row_labels in enumerate(labels.tolist()):
        index = 0
        for column, label in enumerate(row_labels):
            index = 0 if label == -100 else index
            if label != -100:
                found.append((row, column, index))
                index += 1
    return found


def eased_by_hand(constraint, aligned, batch) -> dict[tuple[int, int], float]:
    """E at each response position: the probe on the aligned model's state at the prompt's end, and the judge."""
    probe, found = probe_of(constraint), {}
    weights, bias = probe.weights.double().numpy(), probe.bias
    for row, column, index in positions(batch["labels"]):
        if index == 0:
            with torch.no_grad():
                output = aligned(batch["input_ids"][row : row + 1, :column], output_hidden_states=True)
            odds = output.hidden_states[-1][0, -1].double().numpy() @ weights + bias
            response = [r for r in positions(batch["labels"][row : row + 1]) if r[1] - r[2] == column]
            text = TOKENIZER.decode([int(batch["labels"][row, c]) for _, c, _ in response[:24]])
            share = 1.0 if odds > 0 and not is_refusal(text) else 0.0
        found[row, column] = share
    return found


def within(index: int, first: int | str) -> bool:
    return first == "all" or index < first


@pytest.mark.parametrize("easing", [False, 2, "all"])
@pytest.mark.parametrize("hold", [False, 3, "all"])
def test_easing_and_data_hold_equal_the_specification_on_full_logits(easing, hold):
    """Clauses C2 and C5.6, each term with first tokens of its own."""
    if easing is hold is False:
        with pytest.raises(ConfigError, match="nothing would be constrained"):
            settings(easing=False)
        return
    aligned, model, batch = tiny_model(), tiny_model(), a_batch()
    config = settings(
        weight=1.5,
        easing=easing and {"first": easing},
        hold_data=hold and {"first": hold},
        advanced={"chunk_size": 4},
    )
    constraint, loss = constrained(model, config, batch)

    def logprobs(network):
        logits = logits_of(network, input_ids=batch["input_ids"])
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    student, reference = logprobs(model), logprobs(aligned)
    held, shares, yielded = [], [], 0.0
    where = positions(batch["labels"])
    eased = eased_by_hand(constraint, aligned, batch) if easing else {}
    for row, column, index in where:
        p_ref = reference[row, column - 1, POSITIVE]
        if hold and within(index, hold):
            p = student[row, column - 1, POSITIVE]
            held.append(float(spec.confidence_divergence(p[None], p_ref[None])[0]))
        if easing and within(index, easing):
            shares.append(eased[row, column])
            yielded += shares[-1] * -student[row, column - 1, int(batch["labels"][row, column])]
    expected = 1.5 * sum(held) - yielded
    assert loss.item() == pytest.approx(expected / len(where), rel=1e-4)
    wanted = {}
    if hold:
        wanted |= {"pact/divergence": np.mean(held), "pact/loss": 1.5 * sum(held) / len(where)}
    if easing:
        assert sorted(set(shares)) == [0.0, 1.0]
        wanted |= {"pact/eased": np.mean(shares)}
    assert constraint.metrics() == pytest.approx(wanted, rel=1e-4)
    assert constraint.record.receipt.trained_tokens == len(where)
    first = 99 if "all" in (easing, hold) else max(easing, hold)
    assert constraint.record.receipt.positions == sum(index < first for _, _, index in where)


@pytest.mark.parametrize("build", [tiny_model, adapted])
@pytest.mark.parametrize("terms", [*TERMS, "anchors"])
def test_the_loss_outside_of_the_autocast_that_the_model_ran_in(build, terms):
    """As in an Accelerate loop, which gives the precision to the forward pass alone: here a norm yields float32."""
    config = settings(**{**TERMS, "anchors": {"hold_data": True, "anchors": FEW_ANCHORS}}[terms])
    batch = a_batch()

    def loss(scope):
        model = with_float32_norms(build())
        with torch.autocast("cpu", torch.bfloat16):
            constraint = PactConstraint(model, TOKENIZER, config)
            moved(model)
            with constraint.watch(batch):
                output = model(**batch)
        with scope:
            added = constraint.loss(batch)
        (output.loss + added).backward()
        assert all(torch.isfinite(own).all() for own in gradients(model).values() if own is not None)
        return added.item()

    assert loss(nullcontext()) == loss(torch.autocast("cpu", torch.bfloat16)) != 0


@pytest.mark.parametrize("first", ["all", 3])
@pytest.mark.parametrize("decay", [2.0, 0.0])
def test_published_equals_the_specification_with_a_prompt_free_pass_by_hand(decay, first):
    """Clauses C3, C3.8, C3.9 and C5.6."""
    aligned, model, batch = tiny_model(), tiny_model(), a_batch()
    published = {"temperature": 1.5, "prefix": 1, "decay": decay}
    asked = {"published": published | {"first": first}}
    constraint, loss = constrained(model, settings(weight=0.7, easing=False, advanced=asked), batch)
    header = TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False)
    ids = list(TOKENS.ids)
    student, reference = (logits_of(m, input_ids=batch["input_ids"]) for m in (model, aligned))
    found, where = [], positions(batch["labels"])
    for row, column, index in where:
        if not within(index, first):
            continue
        so_far = batch["input_ids"][row, column - index : column].tolist()
        post = logits_of(aligned, input_ids=torch.tensor([header + so_far]))[0, -1, ids]
        divergence = spec.published_divergence(
            student[row, column - 1, ids][None],
            reference[row, column - 1, ids][None],
            post[None],
            np.array(TOKENS.weights),
            np.array([index]),
            **published,
        )
        found.append(float(divergence[0]))
    assert loss.item() == pytest.approx(0.7 * sum(found) / len(where), rel=1e-4)
    assert constraint.metrics() == pytest.approx(
        {"pact/divergence": np.mean(found), "pact/loss": loss.item()}, rel=1e-4
    )


# --- what the reference reads ---


def shapes_read(monkeypatch, batch, **changes) -> list[tuple[int, ...]]:
    """The shapes of what the reference reads in one step."""
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings(**changes))
    with monkeypatch.context() as patch:
        calls = calls_of_sources(patch)
        loss_of(constraint, moved(model), batch)
        return [tuple(call["input_ids"].shape) for call in calls]


def test_a_pass_reads_no_more_than_is_asked(monkeypatch):
    batch = a_batch(rows=3, width=40)
    batch["labels"][-1, 6:] = -100  # the prompt has 4 tokens, this response 2
    for first in (1, 5, "all"):
        assert shapes_read(monkeypatch, batch, easing={"first": first}) == [(3, 4)]  # the prompts alone
    held = {"easing": False, "hold_data": {"first": 100}}
    assert shapes_read(monkeypatch, batch, **held) == [(3, 40 - 1)]
    both = {"easing": {"first": 8}, "hold_data": {"first": 6}}
    assert shapes_read(monkeypatch, batch, **both) == [(3, 4 + 6 - 1)]
    assert shapes_read(monkeypatch, batch, hold_data=True) == [(3, 40)]


def test_the_prompt_free_pass_ends_where_the_gate_does(monkeypatch):
    batch = a_batch(rows=2, width=40)  # three responses
    header = len(TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False))
    for published, length in (({"prefix": 3, "decay": 0}, 3), ({"prefix": 2, "decay": 0.5}, 7)):
        asked = {"easing": False, "advanced": {"published": published}}
        assert shapes_read(monkeypatch, batch, **asked) == [(2, 40), (3, header + length - 1)]
    closed = {"easing": False, "advanced": {"published": {"boost": 0}}}
    assert shapes_read(monkeypatch, batch, **closed) == [(2, 40)]


@pytest.mark.parametrize(
    "changes",
    [
        {"easing": {"first": 3}},
        {"hold_data": {"first": 3}},
        {"easing": False, "advanced": {"published": {"first": 3}}},
    ],
    ids=["easing", "hold_data", "published"],
)
def test_without_padding_all_passes_are_one(monkeypatch, changes):
    """As with flash attention, which keeps documents apart in one row; so does the mask that is built without it."""
    batch = a_batch()
    _, padded = constrained(tiny_model(), settings(**changes), batch)
    monkeypatch.setattr(LanguageHead, "keeps_documents_apart", True)
    assert [shape[0] for shape in shapes_read(monkeypatch, batch, **changes)] == [1]
    _, flat = constrained(tiny_model(), settings(**changes), batch)
    assert flat.item() == pytest.approx(padded.item(), rel=1e-5)


def test_a_batch_that_is_more_than_its_token_ids_is_read_whole(monkeypatch):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings(easing={"first": 2}))
    calls = calls_of_sources(monkeypatch)
    with constraint.watch():
        hidden = model.model(batch["input_ids"], token_type_ids=torch.ones(3, 12)).last_hidden_state
        assert hidden.requires_grad
    constraint.loss(batch)
    (read,) = calls
    assert "token_type_ids" in read


# --- the documented loop ---


def test_gradients_reach_the_model_in_training_alone():
    model, aligned = tiny_model(), tiny_model()
    _, loss = constrained(model, settings(hold_data=True), a_batch(), reference_model=aligned)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad is None for p in aligned.parameters())


def test_thirty_steps_of_the_documented_loop_keep_the_safety_tokens_where_plain_training_loses_them():
    def train(**changes):
        model, batch = tiny_model(), a_batch(rows=8)
        constraint = PactConstraint(model, TOKENIZER, settings(easing=False, hold_data=True, **changes))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(30):
            with constraint.watch():
                output = model(**batch)
            loss = output.loss + constraint.loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return output.loss.item(), measured(constraint, model, batch)["pact/divergence"]

    plain_loss, plain_divergence = train(weight=0)
    pact_loss, pact_divergence = train(weight=5)
    assert pact_divergence < 0.3 * plain_divergence
    assert pact_loss < plain_loss + 1.0


def test_splitting_a_batch_changes_no_gradient():
    batch = a_batch(rows=4)
    whole, split = tiny_model(), tiny_model()
    config = settings(weight=2, hold_data=True)
    constrained(whole, config, batch)[1].backward()
    constraint = PactConstraint(split, TOKENIZER, config)
    moved(split)
    count = (batch["labels"][:, 1:] != -100).sum()
    for rows in (slice(0, 1), slice(1, 4)):
        part = {key: value[rows] for key, value in batch.items()}
        loss_of(constraint, split, part, Step(1, micro_batches=2, tokens=count)).backward()
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
    assert constraint.record.receipt.steps == [[1, 1]]


def test_without_a_step_each_batch_is_the_next_one():
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings())
    for step in (None, None, Step(5), None):
        loss_of(constraint, model, a_batch(), step)
    assert constraint.record.receipt.steps == [[1, 2], [5, 6]]


def test_a_step_anticipates_the_averaging_over_ranks():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    moved(model)
    alone = loss_of(constraint, model, batch).item()
    count = int((batch["labels"][:, 1:] != -100).sum())
    of_two = loss_of(constraint, model, batch, Step(2, tokens=torch.tensor(4 * count), world_size=2)).item()
    assert of_two == pytest.approx(alone * 2 / 4, rel=1e-6)


@pytest.mark.parametrize("micro_batches", [0, -1])
def test_a_step_has_a_micro_batch(micro_batches):
    with pytest.raises(ConfigError, match=f"micro_batches={micro_batches}.*1 or more"):
        Step(1, micro_batches=micro_batches)


def test_steps_are_counted_over_the_whole_run():
    """Each epoch from 1 again would have the same anchors each time, and count as one."""
    model, batch = adapted(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with pytest.raises(ConfigError, match="number=0"):
        Step(0)
    loss_of(constraint, model, batch, Step(2))
    loss_of(constraint, model, batch, Step(2))
    with pytest.raises(ConfigError, match=r"number=1: it goes back, from 2.*all epochs.*record\.begin"):
        loss_of(constraint, model, batch, Step(1))
    constraint.record.begin()
    loss_of(constraint, model, batch, Step(1))
    assert constraint.record.receipt.steps == [[1, 1]]


@pytest.mark.parametrize("first", ["all", 2])
def test_packed_rows_equal_the_documents_apart(first):
    documents = [a_batch(seed, rows=1, width=8 + seed) for seed in range(3)]
    packed = {
        "input_ids": torch.cat([d["input_ids"] for d in documents], 1),
        "labels": torch.cat([d["labels"] for d in documents], 1),
        "position_ids": torch.cat([torch.arange(d["labels"].shape[1]) for d in documents])[None],
        "use_cache": False,  # otherwise transformers lets the documents of a row see each other
    }
    config = settings(easing={"first": first}, hold_data={"first": first})
    model = tiny_model(attn_implementation="eager")
    constraint, loss = constrained(model, config, packed)
    count = int((packed["labels"] != -100).sum())
    total = sum(loss_of(constraint, model, document, Step(2, 3, count)).item() for document in documents)
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_batch_without_a_response_adds_nothing_and_keeps_the_graph():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings(hold_data=True))
    loss_of(constraint, model, batch).backward()
    loss = loss_of(constraint, model, without_response(batch), Step(2, tokens=7))
    assert loss.item() == 0.0
    loss.backward()


def test_lora_costs_no_second_model_and_weight_0_only_measures():
    model = adapted().train()
    constraint, loss = constrained(model, settings(weight=0, hold_data=True), a_batch())
    assert constraint.record.receipt.reference == "adapter_off"
    assert constraint.reference.choice.source == "adapter_off"
    assert loss.item() == 0.0
    assert not loss.requires_grad
    assert constraint.metrics()["pact/divergence"] > 0


def test_gradient_checkpointing_and_bfloat16():
    model = tiny_model().to(torch.bfloat16)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = copy.deepcopy(model)
    _, loss = constrained(model, settings(hold_data=True), a_batch())
    loss.backward()
    plain.gradient_checkpointing_disable()
    _, again = constrained(plain, settings(hold_data=True), a_batch())
    again.backward()
    assert loss.dtype == torch.float32
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("build", [tiny_model, adapted])
def test_building_leaves_the_model_and_the_random_state_as_they_were(build):
    model = build().train()
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(gradient is None for gradient in gradients(model).values())


# --- what must not pass in silence ---


def test_a_forward_pass_outside_watch():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    model(**batch)
    with pytest.raises(HiddenStatesNotSeenError, match="watch"):
        constraint.loss(batch)
    with constraint.watch():
        model(**batch)
    constraint.loss(batch)
    with pytest.raises(HiddenStatesNotSeenError, match="once for each call"):
        constraint.loss(batch)
    with constraint.watch(), torch.no_grad():
        model(**batch)
    with pytest.raises(HiddenStatesNotSeenError, match="no gradient"):
        constraint.loss(batch)
    assert not model.model._forward_hooks


def test_a_batch_without_labels():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with constraint.watch():
        model(**batch)
    with pytest.raises(ShapeError, match="the batch has no labels"):
        constraint.loss({name: value for name, value in batch.items() if name != "labels"})


def test_labels_all_ignored():
    model, batch = tiny_model(), without_response(a_batch())
    constraint = PactConstraint(model, TOKENIZER, settings())
    with pytest.raises(NoResponseError, match="all -100"):
        loss_of(constraint, model, batch)
    loss_of(constraint, model, batch, Step(9))
    assert constraint.metrics() == {}, "a few rows may have theirs truncated away"
    loss_of(constraint, model, batch, Step(10))
    with pytest.raises(NoResponseError, match="no response position since the last log"):
        constraint.metrics()


def test_a_batch_without_a_response_stops_no_run_that_has_seen_one(caplog):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    loss_of(constraint, model, batch, Step(1))
    assert constraint.metrics()
    for number in (2, 3):
        loss_of(constraint, model, without_response(batch), Step(number))
        assert constraint.metrics() == {}
    assert caplog.text.count("have shown no response position") == 1
    loss_of(constraint, model, batch, Step(4))
    assert constraint.metrics()


def test_nothing_masked_warns_and_names_the_settings():
    model, batch = tiny_model(), a_batch()
    batch["labels"] = batch["input_ids"].clone()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with pytest.warns(UserWarning, match=r"completion_only_loss.*train_on_inputs"):
        loss_of(constraint, model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(constraint, model, batch)


@pytest.mark.parametrize("terms", TERMS)
def test_nan_in_the_reference_and_in_the_model(terms):
    changes = TERMS[terms]
    batch = a_batch()
    aligned, model = tiny_model(), tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings(**changes), reference_model=aligned)
    with torch.no_grad():
        aligned.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        loss_of(constraint, model, batch)
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, settings(**changes))
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        loss_of(constraint, model, batch)


def test_what_does_not_fit_together(tmp_path):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, settings())
    with constraint.watch():
        model(**batch)
    with pytest.raises(ShapeError, match="labels"):
        constraint.loss({"labels": batch["labels"][:, :-1]})
    with pytest.raises(PactError, match="only 41 logits"):
        PactConstraint(
            tiny_model(vocab_size=41, pad_token_id=0, bos_token_id=1, eos_token_id=2), TOKENIZER, settings()
        )
    other = SafetyTokens(TOKENS.ids, TOKENS.weights, TOKENS.tokens, TOKENS.vocab_size, "0" * 64)
    with pytest.raises(TokenizerMismatchError):
        PactConstraint(model, TOKENIZER, settings(safety_tokens=other))
    with pytest.raises(ReferenceModelError, match=r"reference=.*no-such-folder"):
        PactConstraint(model, TOKENIZER, settings(reference=str(tmp_path / "no-such-folder")))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_was_replaced_or_resized_is_refused(tmp_path, tied):
    """The constraint would read the one that it was built with, and the reference has no more tokens than that."""
    batch, config = a_batch(), settings(store=tmp_path, anchors=FEW_ANCHORS)
    for use in (
        lambda constraint, model: constraint.fill([batch], progress=False),
        lambda constraint, model: constraint.ahead(batch),
        lambda constraint, model: loss_of(constraint, model, batch),
    ):
        model = tiny_model(tie_word_embeddings=tied)
        constraint = PactConstraint(model, TOKENIZER, config)
        model.resize_token_embeddings(len(TOKENIZER) + 2)
        with pytest.raises(ModelStructureError, match=r"head was replaced or resized.*Resize.*before"):
            use(constraint, model)


def test_a_reference_from_a_folder(tmp_path):
    aligned, batch = tiny_model(seed=4), a_batch()
    aligned.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    named, from_folder = constrained(tiny_model(), settings(hold_data=True, reference=tmp_path), batch)
    _, given = constrained(tiny_model(), settings(hold_data=True), batch, reference_model=aligned)
    assert from_folder.item() == pytest.approx(given.item(), rel=1e-6)
    assert named.record.receipt.reference == "model"
