"""PactConstraint in a bespoke loop, against the executable reference on full logits."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from pact_spec import reference as spec
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer

from pact_plugin import PactConfig, PactConstraint, SafetyTokens
from pact_plugin.errors import (
    ConfigError,
    HiddenStatesNotSeenError,
    NonFiniteError,
    NoResponseError,
    PactError,
    ReferenceModelError,
    ShapeError,
    TokenizerMismatchError,
)
from pact_plugin.reference.passes import Passes
from pact_plugin.reference.source import Reference

TOKENIZER = tiny_tokenizer()
TOKENS = SafetyTokens.for_tokenizer(TOKENIZER, [40, 41, 42, 43], [1.0, 0.5, -0.2, 0.1])
POSITIVE = [40, 41, 43]


def alone(**settings) -> PactConfig:
    """Without anchors, which have tests of their own."""
    return PactConfig(safety_tokens=TOKENS, anchors=0, **settings)


def test_tokens_that_refusals_do_not_begin_with_are_warned_of_when_they_are_used(recwarn):
    def built(**provenance: str) -> list[str]:
        recwarn.clear()
        tokens = SafetyTokens.for_tokenizer(TOKENIZER, TOKENS.ids, TOKENS.weights, provenance)
        PactConstraint(tiny_model(), TOKENIZER, PactConfig(safety_tokens=tokens, anchors=0))
        return [str(one.message) for one in recwarn if "first word" in str(one.message)]

    assert built() == built(first_token_mass="0.900") == []
    (warning,) = built(first_token_mass="0.002")
    assert "hold 0.2% of the probability at the first word" in warning
    assert "Raise `top_k` (4)" in warning
    with pytest.raises(ConfigError, match=r"first_token_mass='much'.*tokens select"):
        built(first_token_mass="much")


def a_batch(seed: int = 0, rows: int = 3, width: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(30, 60, (rows, width), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[0, 8:] = -100
    labels[-1, 6:7] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def moved(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


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


def constrained_loss(model, config, batch, **keywords):
    constraint = PactConstraint(model, TOKENIZER, config)
    moved(model)
    with constraint.watch():
        output = model(**batch)
    return constraint, output, constraint.loss(batch, **keywords)


@pytest.mark.parametrize("first_n", ["all", 2])
@pytest.mark.parametrize("easing", [True, False])
def test_confidence_equals_the_specification_on_full_logits(easing, first_n):
    """Clauses C2 and C5.6."""
    aligned, model, batch = tiny_model(), tiny_model(), a_batch()
    config = alone(weight=1.5, easing=easing, chunk_size=4, first_n=first_n)
    constraint, output, loss = constrained_loss(model, config, batch)

    def logprobs(network):
        logits = logits_of(network, input_ids=batch["input_ids"])
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    student, reference = logprobs(model), logprobs(aligned)
    divergence, eased, mass = 0.0, 0.0, 0.0
    count = len(positions(batch["labels"]))
    where = [p for p in positions(batch["labels"]) if first_n == "all" or p[2] < first_n]
    for row, column, _ in where:
        p_ref = reference[row, column - 1, POSITIVE]
        label = int(batch["labels"][row, column])
        divergence += float(
            spec.confidence_divergence(student[row, column - 1, POSITIVE][None], p_ref[None])[0]
        )
        mass += np.exp(p_ref).sum()
        if label not in POSITIVE:
            eased += np.exp(p_ref).sum() * -student[row, column - 1, label]
    expected = 1.5 * divergence - (eased if easing else 0.0)
    assert loss.item() == pytest.approx(expected / count, rel=1e-4)
    metrics = constraint.metrics()
    assert metrics["pact/positions"] == len(where)
    assert metrics["pact/divergence"] == pytest.approx(divergence / len(where), rel=1e-4)
    assert metrics["pact/loss"] == pytest.approx(1.5 * divergence / count, rel=1e-4)
    assert metrics["pact/safety_mass_reference"] == pytest.approx(mass / len(where), rel=1e-4)
    assert output.loss.item() > 0


@pytest.mark.parametrize("first_n", ["all", 3])
@pytest.mark.parametrize("decay", [2.0, 0.0])
def test_published_equals_the_specification_with_a_prompt_free_pass_by_hand(decay, first_n):
    """Clauses C3, C3.8, C3.9 and C5.6."""
    aligned, model, batch = tiny_model(), tiny_model(), a_batch()
    published = {"temperature": 1.5, "prefix": 1, "decay": decay}
    changes = {"weight": 0.7, "published": published, "first_n": first_n}
    config = PactConfig(safety_tokens=TOKENS, objective="published", **changes)
    _, _, loss = constrained_loss(model, config, batch)
    header = TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False)
    ids = list(TOKENS.ids)
    student, reference = (logits_of(m, input_ids=batch["input_ids"]) for m in (model, aligned))
    total, count = 0.0, len(positions(batch["labels"]))
    for row, column, index in positions(batch["labels"]):
        if first_n != "all" and index >= first_n:
            continue
        so_far = batch["input_ids"][row, column - index : column].tolist()
        post = logits_of(aligned, input_ids=torch.tensor([header + so_far]))[0, -1, ids]
        total += float(
            spec.published_divergence(
                student[row, column - 1, ids][None],
                reference[row, column - 1, ids][None],
                post[None],
                np.array(TOKENS.weights),
                np.array([index]),
                **published,
            )[0]
        )
    assert loss.item() == pytest.approx(0.7 * total / count, rel=1e-4)


def passes_of_the_reference(monkeypatch, batch, **settings) -> list[tuple[int, ...]]:
    """The shapes of what the reference reads in one step."""
    shapes = []
    hidden = Reference.hidden

    def recorded(self, args, kwargs, autocast=None):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return hidden(self, args, kwargs, autocast)

    monkeypatch.setattr(Reference, "hidden", recorded)
    constrained_loss(tiny_model(), alone(**settings), batch)
    return shapes


def test_a_pass_reads_no_more_than_the_prompt_and_the_first_n_tokens(monkeypatch):
    batch = a_batch(rows=3, width=40)
    batch["labels"][-1, 6:] = -100  # the prompt has 4 tokens, this response 2
    assert passes_of_the_reference(monkeypatch, batch) == [(3, 4 + 16 - 1)]
    assert passes_of_the_reference(monkeypatch, batch, first_n="all") == [(3, 40)]
    assert passes_of_the_reference(monkeypatch, batch, first_n=5) == [(3, 4 + 5 - 1)]
    assert passes_of_the_reference(monkeypatch, batch, first_n=100) == [(3, 40 - 1)]


def test_the_prompt_free_pass_ends_where_the_gate_does(monkeypatch):
    batch = a_batch(rows=2, width=40)  # three responses
    header = len(TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False))
    for published, length in (({"prefix": 3, "decay": 0}, 3), ({"prefix": 2, "decay": 0.5}, 7)):
        settings = {"objective": "published", "published": published}
        assert passes_of_the_reference(monkeypatch, batch, **settings) == [(2, 40), (3, header + length - 1)]
    closed = {"objective": "published", "published": {"boost": 0}}
    assert passes_of_the_reference(monkeypatch, batch, **closed) == [(2, 40)]


@pytest.mark.parametrize("objective", ["confidence", "published"])
def test_without_padding_both_passes_are_one(monkeypatch, objective):
    """As with flash attention, which keeps documents apart in one row; so does the mask that is built without it."""
    batch = a_batch()
    settings = {"objective": objective, "first_n": 3}
    _, _, padded = constrained_loss(tiny_model(), alone(**settings), batch)
    monkeypatch.setattr(Passes, "_flat", True)
    shapes = passes_of_the_reference(monkeypatch, batch, **settings)
    assert [shape[0] for shape in shapes] == [1]
    _, _, flat = constrained_loss(tiny_model(), alone(**settings), batch)
    assert flat.item() == pytest.approx(padded.item(), rel=1e-5)


def test_a_batch_that_is_more_than_its_token_ids_is_read_whole(monkeypatch):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, alone(first_n=2))
    with constraint.watch():
        model(**batch)
    constraint._watch._seen.kwargs["pixel_values"] = torch.ones(1)
    read = []
    monkeypatch.setattr(
        Reference, "hidden", lambda self, args, kwargs, autocast: read.append(kwargs) or hidden
    )
    with constraint.reference.session():
        hidden = model.model(batch["input_ids"]).last_hidden_state
    constraint.loss(batch)
    assert "pixel_values" in read[0]
    assert read[0]["input_ids"].shape == (3, 12)


def test_gradients_reach_the_model_in_training_alone():
    model, batch = tiny_model(), a_batch()
    aligned = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS), reference_model=aligned)
    moved(model)
    with constraint.watch():
        model(**batch)
    constraint.loss(batch).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad is None for p in aligned.parameters())


def test_five_steps_of_the_documented_loop_keep_the_safety_tokens_where_plain_training_loses_them():
    def train(config):
        model, batch = tiny_model(), a_batch(rows=8)
        constraint = PactConstraint(model, TOKENIZER, config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(30):
            with constraint.watch():
                output = model(**batch)
            loss = output.loss + constraint.loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with constraint.watch(), torch.no_grad():
            model(**batch)
        constraint.observe(batch)
        return output.loss.item(), constraint.metrics("eval")["pact/divergence"]

    plain_loss, plain_divergence = train(PactConfig(safety_tokens=TOKENS, weight=0))
    pact_loss, pact_divergence = train(PactConfig(safety_tokens=TOKENS, weight=5, easing=False, hold="all"))
    assert pact_divergence < 0.3 * plain_divergence
    assert pact_loss < plain_loss + 1.0


def loss_beside_the_task(config, *, temperature=1.0, detached=False):
    """The loss, its gradients and how many positions were projected, with log-probabilities of the labels."""
    torch.manual_seed(0)
    model, batch, projected = moved(tiny_model()), a_batch(), []
    constraint = PactConstraint(model, TOKENIZER, config)
    moved(model)
    with constraint.watch():
        output = model(**batch)
    logprobs = (output.logits[:, :-1] / temperature).log_softmax(-1)
    given = logprobs.gather(2, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
    if detached:
        given = given.detach()
    handle = model.lm_head.register_forward_hook(lambda m, a, out: projected.append(out.shape[0]))
    loss = constraint.loss(batch, label_logprobs=given)
    handle.remove()
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return loss, gradients, sum(projected)


@pytest.mark.parametrize("settings", [{}, {"easing": False}, {"first_n": 2}])
def test_beside_the_task_loss_the_head_is_read_only_once_to_compare(settings):
    config = alone(weight=2.0, reference="frozen_copy", **settings)
    loss, gradients, projected = loss_beside_the_task(config)
    expected, others, _ = loss_beside_the_task(config, detached=True)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    for ours, own in zip(gradients, others, strict=True):
        torch.testing.assert_close(ours, own, atol=1e-6, rtol=1e-4)
    # The reference's positions, and those of the comparison of the first batch (with one more for their type).
    count = len(positions(a_batch()["labels"])) if "first_n" not in settings else 2 * 4
    assert projected == 2 * count + 1


def test_log_probs_at_another_temperature_are_not_used(caplog):
    config = alone(weight=2.0, reference="frozen_copy")
    loss, gradients, _ = loss_beside_the_task(config, temperature=0.8)
    assert "another temperature" in caplog.text
    expected, others, _ = loss_beside_the_task(config, detached=True)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_splitting_a_batch_changes_no_gradient():
    batch = a_batch(rows=4)
    whole, split = tiny_model(), tiny_model()
    config = alone(weight=2)
    _, _, loss = constrained_loss(whole, config, batch)
    loss.backward()
    constraint = PactConstraint(split, TOKENIZER, config)
    moved(split)
    count = (batch["labels"][:, 1:] != -100).sum()
    for rows in (slice(0, 1), slice(1, 4)):
        part = {key: value[rows] for key, value in batch.items()}
        with constraint.watch():
            split(**part)
        constraint.loss(part, num_items_in_batch=count, step=1).backward()
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
    assert constraint.receipt.steps == [[1, 1]]


@pytest.mark.parametrize("first_n", ["all", 2])
def test_packed_rows_equal_the_documents_apart(first_n):
    documents = [a_batch(seed, rows=1, width=8 + seed) for seed in range(3)]
    packed = {
        "input_ids": torch.cat([d["input_ids"] for d in documents], 1),
        "labels": torch.cat([d["labels"] for d in documents], 1),
        "position_ids": torch.cat([torch.arange(d["labels"].shape[1]) for d in documents])[None],
        "use_cache": False,  # otherwise transformers lets the documents of a row see each other
    }
    config = alone(first_n=first_n)
    model = tiny_model(attn_implementation="eager")
    constraint, _, loss = constrained_loss(model, config, packed)
    count, total = int((packed["labels"] != -100).sum()), 0.0
    for document in documents:
        with constraint.watch():
            model(**document)
        total += constraint.loss(document, num_items_in_batch=count).item()
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_batch_without_a_response_adds_nothing_and_keeps_the_graph():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    with constraint.watch():
        model(**batch)
    constraint.loss(batch).backward()
    empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
    with constraint.watch():
        model(**batch)
    loss = constraint.loss(empty, num_items_in_batch=7)
    assert loss.item() == 0.0
    loss.backward()


def test_lora_costs_no_second_model_and_weight_0_only_measures():
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    constraint, _, loss = constrained_loss(model, PactConfig(safety_tokens=TOKENS, weight=0), a_batch())
    assert constraint.receipt.reference == "adapter_off"
    assert loss.item() == 0.0
    assert constraint.metrics()["pact/divergence"] > 0


def test_gradient_checkpointing_and_bfloat16():
    model = tiny_model().to(torch.bfloat16)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = a_batch()
    plain = copy.deepcopy(model)
    _, _, loss = constrained_loss(model, PactConfig(safety_tokens=TOKENS), batch)
    loss.backward()
    plain.gradient_checkpointing_disable()
    _, _, again = constrained_loss(plain, PactConfig(safety_tokens=TOKENS), batch)
    again.backward()
    assert loss.dtype == torch.float32
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# --- what must not pass in silence ---


def test_a_forward_pass_outside_watch():
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
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


def test_labels_all_ignored():
    model, batch = tiny_model(), a_batch()
    batch["labels"].fill_(-100)
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    with constraint.watch():
        model(input_ids=batch["input_ids"])
    with pytest.raises(NoResponseError, match="all -100"):
        constraint.loss(batch)
    with constraint.watch():
        model(input_ids=batch["input_ids"])
    constraint.loss(batch, empty_ok=True)
    with pytest.raises(NoResponseError, match="no response position since the last log"):
        constraint.metrics()


def test_nothing_masked_warns_and_names_the_settings():
    model, batch = tiny_model(), a_batch()
    batch["labels"] = batch["input_ids"].clone()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    with constraint.watch():
        model(**batch)
    with pytest.warns(UserWarning, match=r"completion_only_loss.*train_on_inputs"):
        constraint.loss(batch)
    with constraint.watch():
        model(**batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constraint.loss(batch)


def test_nan_in_the_reference_and_in_the_model():
    batch = a_batch()
    aligned, model = tiny_model(), tiny_model()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS), reference_model=aligned)
    with torch.no_grad():
        aligned.model.norm.weight.fill_(torch.nan)
    with constraint.watch():
        model(**batch)
    with pytest.raises(NonFiniteError, match="in the reference"):
        constraint.loss(batch)
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with constraint.watch():
        model(**batch)
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        constraint.loss(batch)


def test_what_does_not_fit_together(tmp_path):
    model, batch = tiny_model(), a_batch()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS))
    with constraint.watch():
        model(**batch)
    with pytest.raises(ShapeError, match="labels"):
        constraint.loss({"labels": batch["labels"][:, :-1]})
    with pytest.raises(PactError, match="only 41 logits"):
        PactConstraint(
            tiny_model(vocab_size=41, pad_token_id=0, bos_token_id=1, eos_token_id=2),
            TOKENIZER,
            PactConfig(safety_tokens=TOKENS),
        )
    other = SafetyTokens(TOKENS.ids, TOKENS.weights, TOKENS.tokens, TOKENS.vocab_size, "0" * 64)
    with pytest.raises(TokenizerMismatchError):
        PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=other))
    with pytest.raises(ReferenceModelError, match=r"reference=.*no-such-folder"):
        PactConstraint(
            model, TOKENIZER, PactConfig(safety_tokens=TOKENS, reference=str(tmp_path / "no-such-folder"))
        )


def test_a_reference_from_a_folder(tmp_path):
    aligned, batch = tiny_model(seed=4), a_batch()
    aligned.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    config = PactConfig(safety_tokens=TOKENS, reference=tmp_path)
    _, _, from_folder = constrained_loss(tiny_model(), config, batch)
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, PactConfig(safety_tokens=TOKENS), reference_model=aligned)
    moved(model)
    with constraint.watch():
        model(**batch)
    assert from_folder.item() == pytest.approx(constraint.loss(batch).item(), rel=1e-6)
