"""What the constraint adds equals the executable reference on full logits (spec/PACT.md, clauses C2, C3 and C5.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loop import POSITIVE, TOKENIZER, TOKENS, a_batch, constrained, loss_of, probe_of, settings
from pact_spec import reference as spec
from tiny import tiny_model

from pact_plugin.errors import ConfigError
from pact_plugin.judge import is_refusal
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
