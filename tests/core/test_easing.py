"""Which responses are eased, and what that does to the gradient (spec/PACT.md, clause C2.6)."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from labelled_answers import HELP as HELPFUL
from labelled_answers import REFUSALS
from loop import TOKENIZER, a_batch, gradients, loss_of, moved, settings
from tiny import HELP, REFUSAL, tiny_model
from torch import Tensor
from turns import COMPLIES, EAGER, LAYOUTS, Turns, by_hand, conversations, encode, packed, padded, prompts

from pact_plugin import PactConstraint, judge
from pact_plugin.judge import answer_refuses, is_refusal
from pact_plugin.terms.step import Step
from pact_plugin.terms.student import Reading


def built(model, **changes) -> PactConstraint:
    return PactConstraint(model, TOKENIZER, settings(**changes))


def shares(constraint: PactConstraint, model, batch: dict[str, Tensor]) -> list[float]:
    """The e at each label of a batch, row by row: the slope of the loss by its log-probability."""
    inputs = {name: value for name, value in batch.items() if not name.startswith("cu_seq_lens")}
    read = []
    label_logprobs = Reading.label_logprobs

    def recorded(self, where) -> Tensor:
        read.append((where, label_logprobs(self, where)))
        return read[-1][1]

    with constraint.watch(batch):
        model(**inputs)
    with mock.patch.object(Reading, "label_logprobs", recorded):
        loss = constraint.loss(batch, Step(1, tokens=1))
    ((where, logprobs),) = read
    (slope,) = torch.autograd.grad(loss, logprobs)
    labels = batch["labels"]
    places = where.own(torch.arange(labels.numel()).view(labels.shape))
    whole = torch.zeros(labels.numel()).index_add(0, places, slope).view(labels.shape)
    assert not whole[labels == -100].any()
    return whole[:, 1:][labels[:, 1:] != -100].tolist()


@pytest.mark.parametrize("first", [16, "all", 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_p29_the_same_responses_are_eased_in_every_layout_and_order(layout, first):
    rows = conversations()
    model = tiny_model(**EAGER)
    constraint = built(model, easing={"first": first})
    for order in (rows, rows[::-1]):
        wanted = by_hand(order, None if first == "all" else first)
        assert set(wanted) == {0.0, 1.0}
        assert shares(constraint, model, LAYOUTS[layout](order)) == wanted


def test_p29_what_stands_behind_the_first_24_tokens_changes_nothing():
    model = tiny_model()
    constraint = built(model, easing={"first": "all"})
    answer, prompt = [*encode(COMPLIES), *range(30, 50)], prompts(True)[0]
    behind = encode(f" {REFUSAL} {REFUSAL}")
    assert len(answer) >= 24
    for tokens in (answer, answer[:24], answer[:24] + behind):
        row = Turns(((prompt, False), (tokens, True)))
        assert shares(constraint, model, padded([row])) == [1.0] * len(tokens)
    early = Turns(((prompt, False), ([*encode(REFUSAL), *answer], True)))
    assert set(shares(constraint, model, padded([early]))) == {0.0}


def test_p29_what_came_before_in_the_conversation_is_part_of_the_prompt():
    """So the same last turn can be eased in one conversation and not in another."""
    rows = [
        Turns(((start, False), (encode(REFUSAL), True), (prompt, False), (encode(HELP), True)))
        for start in (*prompts(True), *prompts(False))
        for prompt in (*prompts(True), *prompts(False))
    ]
    model = tiny_model(**EAGER)
    found = shares(built(model), model, padded(rows))
    assert found == by_hand(rows)
    size = len(encode(REFUSAL)) + len(encode(HELP))
    last = [found[(number + 1) * size - 1] for number in range(len(rows))]
    assert any({last[i], last[i + 10]} == {0.0, 1.0} for i in range(10))


@pytest.mark.parametrize("first", [1, 3, "all"])
def test_p30_the_gradient_is_the_tasks_without_the_first_tokens_of_the_eased(first):
    batch = padded(conversations())
    model, plain = tiny_model(), tiny_model()
    constraint = built(model, easing={"first": first})
    moved(model), moved(plain)
    with constraint.watch(batch):
        task = model(**batch).loss
    (task + constraint.loss(batch)).backward()

    kept = torch.tensor(
        [1.0 - share for share in by_hand(conversations(), None if first == "all" else first)]
    )
    logits, labels = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    trained = labels[:, 1:] != -100
    nll = torch.nn.functional.cross_entropy(logits[:, :-1][trained], labels[:, 1:][trained], reduction="none")
    assert 0 < kept.sum() < len(kept)
    ((kept * nll).sum() / len(nll)).backward()
    theirs = gradients(plain)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-4)


def test_p30_under_autocast_the_head_is_read_as_the_task_reads_it():
    """All is eased, so nothing may be left of the task's gradient but what rounding leaves."""
    row = Turns(((prompts(True)[0], False), (encode(COMPLIES), True)))
    model, batch = tiny_model(), padded([row, row])
    constraint = built(model, easing={"first": "all"})
    moved(model)
    with constraint.watch(batch), torch.autocast("cpu", torch.bfloat16):
        task = model(**batch).loss
    relief = constraint.loss(batch)
    assert constraint.metrics() == {"pact/eased": 1.0}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    left, whole = (
        torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters, retain_graph=True)]).norm()
        for loss in (task + relief, task)
    )
    assert left < 1e-3 * whole


def test_nothing_is_eased_where_all_prompts_are_benign_or_all_answers_refuse():
    model = tiny_model()
    constraint = built(model)
    benign = [Turns(((prompt, False), (encode(HELP), True))) for prompt in prompts(False)]
    refused = [Turns(((prompt, False), (encode(REFUSAL), True))) for prompt in prompts(True)]
    for rows in (benign, refused):
        loss = loss_of(constraint, moved(model), padded(rows))
        assert loss.item() == 0.0
        assert constraint.metrics() == {"pact/eased": 0.0}


def test_what_only_begins_like_a_refusal_is_eased():
    """By the judge, not by safety tokens or by a first word: of its own labelled answers, and of "I can help"."""
    model = tiny_model()
    constraint = built(model, easing={"first": 1})
    answers = [text for text in (COMPLIES, *REFUSALS, *HELPFUL) if text]
    rows = [Turns(((prompts(True)[0], False), (encode(text), True))) for text in answers]
    found = shares(constraint, model, padded(rows))
    begins = [sum(len(row.parts[1][0]) for row in rows[:number]) for number in range(len(rows))]
    eased = [text for text, at in zip(answers, begins, strict=True) if found[at] == 1.0]
    judged = [TOKENIZER.decode(encode(text)[:24]) for text in answers]
    assert eased == [text for text, said in zip(answers, judged, strict=True) if not is_refusal(said)]
    assert COMPLIES in eased
    assert "I can’t" not in eased
    assert "I can't help with that." not in eased
    assert "Sure, here is a script." in eased


def test_a_response_that_begins_a_document_is_not_eased():
    """Nothing says what it answers."""
    model = tiny_model(**EAGER)
    answer = encode(COMPLIES)
    headless = Turns(((answer, True),))
    headed = Turns(((prompts(True)[0], False), (answer, True)))
    found = shares(built(model), model, packed([headed, headless]))
    assert found == [1.0] * len(answer) + [0.0] * len(answer)


def test_text_behind_one_token_alone_is_not_eased():
    """Pretraining data, whose first label a framework masks: <s> is no prompt, whatever the probe makes of it."""
    model = tiny_model()
    constraint = built(model)
    answer = encode(COMPLIES)
    for before, wanted in ((1, False), (2, True)):
        rows = [Turns((([token] * before, False), (answer, True))) for token in range(4, len(TOKENIZER))]
        loss_of(constraint, model, padded(rows))
        assert (constraint.metrics()["pact/eased"] > 0) is wanted


# --- the judge's verdicts are kept ---


def judged(monkeypatch) -> list[str]:
    """The texts that the judge is asked about from here on."""
    seen: list[str] = []

    def recorded(text: str) -> bool:
        seen.append(text)
        return is_refusal(text)

    monkeypatch.setattr(judge, "is_refusal", recorded)
    return seen


def test_an_answer_is_judged_once_and_never_mistaken_for_another(monkeypatch):
    """Answers of the same beginning, and one that is another's beginning."""
    model = tiny_model()
    constraint = built(model)
    texts = [
        COMPLIES,
        REFUSAL,
        "I can't",
        "I can",
        "I can't help with that request. I cannot",
        "one",
        "one two",
    ]
    rows = [Turns(((prompts(True)[0], False), (encode(text), True))) for text in texts]
    seen = judged(monkeypatch)
    wanted = [float(not is_refusal(text)) for text in texts for _ in encode(text)]
    assert set(wanted) == {0.0, 1.0}
    for order in (1, -1):
        for _ in range(2):
            found = shares(constraint, model, padded(rows[::order]))
            by_row = [float(not is_refusal(text)) for text in texts[::order] for _ in encode(text)]
            assert found == by_row
    assert sorted(seen) == sorted(texts)


def test_constraints_do_not_share_verdicts(monkeypatch):
    model, other = tiny_model(), tiny_model()
    one, two = built(model), built(other)
    batch = a_batch()
    loss_of(one, model, batch)
    seen = judged(monkeypatch)
    loss_of(one, model, batch)
    assert seen == []
    loss_of(two, other, batch)
    assert len(seen) == 4


def test_special_tokens_are_no_part_of_what_is_judged():
    end = TOKENIZER.eos_token_id
    assert answer_refuses(TOKENIZER, [*encode(REFUSAL), end])
    assert not answer_refuses(TOKENIZER, [*encode(COMPLIES), end])
    assert not answer_refuses(TOKENIZER, [end])
    assert not answer_refuses(TOKENIZER, [])
