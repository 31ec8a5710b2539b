"""The parts of an audit: intervals and tests of counts, prompts, confidence along answers, verdicts."""

from __future__ import annotations

import json
from math import comb

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pact_spec import reference as spec
from pact_transformers.prompt_rows import prompt_rows
from tiny import QUESTIONS, REQUESTS, tiny_model, tiny_tokenizer

from pact_plugin.audit.compare import curve
from pact_plugin.audit.intervals import mcnemar, paired_difference, quantile, wilson
from pact_plugin.audit.reading import ask, read
from pact_plugin.audit.result import Change, Comparison, Rate
from pact_plugin.audit.verdict import Thresholds, judge
from pact_plugin.data import prompts
from pact_plugin.data.generation import user_prompt
from pact_plugin.data.prompts import AuditPrompt
from pact_plugin.errors import ConfigError, NonFiniteError

COUNTS = st.integers(1, 60).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda gained: st.tuples(st.just(gained), st.integers(0, n - gained), st.just(n))
    )
)


# --- intervals ---


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_tango_and_mcnemar_give_published_values():
    # Airway reactivity in 21 children (1 and 7 changed): Fagerland, Lydersen, Laake, Stat. Med. 33 (2014), 2850-2875.
    assert paired_difference(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == 2 / 2**10


@pytest.mark.parametrize("n", [1, 10, 220])
def test_no_change_still_has_an_interval(n):
    z2 = quantile() ** 2
    assert paired_difference(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


@given(COUNTS)
def test_the_interval_of_a_change_holds_it_and_mirrors_with_it(counts):
    gained, lost, n = counts
    low, high = paired_difference(gained, lost, n)
    assert -1 - 1e-9 <= low <= (gained - lost) / n + 1e-9
    assert (gained - lost) / n - 1e-9 <= high <= 1 + 1e-9
    assert paired_difference(lost, gained, n) == pytest.approx((-high, -low), abs=1e-9)


@given(COUNTS)
def test_the_interval_leaves_out_zero_just_when_mcnemars_score_does(counts):
    gained, lost, n = counts
    low, high = paired_difference(gained, lost, n)
    score = abs(gained - lost) / max(gained + lost, 1) ** 0.5
    if abs(score - quantile()) > 1e-6:
        assert (low > 0 or high < 0) == (score > quantile())


@pytest.mark.parametrize("rates", [(0.9, 0.05, 0.03), (0.5, 0.02, 0.2), (0.3, 0.0, 0.1)])
def test_the_interval_of_a_change_covers_it(rates):
    """By enumeration over all outcomes of 40 pairs: between 90% and 98.5% of the time for a nominal 95%."""
    _, gain, loss = rates
    n, covered = 40, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            chance = comb(n, gained) * comb(n - gained, lost) * gain**gained * loss**lost
            chance *= (1 - gain - loss) ** (n - gained - lost)
            if chance > 1e-12:
                low, high = paired_difference(gained, lost, n)
                covered += chance * (low <= gain - loss <= high)
    assert 0.9 < covered < 0.985


# --- prompts ---


def test_the_bundled_prompts_are_220_of_each_kind():
    found = prompts.bundled()
    assert [sum(one.kind == kind for one in found.prompts) for kind in prompts.KINDS] == [220, 220]
    assert found.limited(11).prompts[0].category != found.limited(11).prompts[1].category
    assert len(found.limited(11).prompts) == 22
    assert found.digest != found.limited(11).digest == prompts.bundled().limited(11).digest


def test_audits_ask_what_no_anchor_asks_and_both_ask_about_every_hazard():
    anchors, audits = prompts.for_anchors(), prompts.for_audits()
    assert not set(anchors.prompts) & set(audits.prompts)
    assert set(anchors.prompts) | set(audits.prompts) > set(prompts.bundled().prompts)
    categories = {one.category for one in prompts.bundled().prompts}
    for found, number in ((anchors, 256), (audits, 156)):
        assert [sum(one.kind == kind for one in found.prompts) for kind in prompts.KINDS] == [number] * 2
        assert {one.category for one in found.prompts if one.category} == categories
    assert not anchors.repeated


FILES = {
    "p.jsonl": '\n{"prompt": "How, then?", "kind": "harmful", "category": "x"}\n'
    '{"prompt": "Why?", "kind": "benign"}\n{"prompt": "Why? ", "kind": "benign"}\n',
    "p.csv": 'kind,prompt,category\nharmful,"How, then?",x\nbenign,Why?,\nbenign,Why?,\n',
    "p.txt": "harmful: How, then?\n\nbenign: Why?\nbenign:Why?",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_of_prompts_is_read(tmp_path, name):
    (tmp_path / name).write_text("\ufeff" + FILES[name], encoding="utf-8")
    found = prompts.load_file(tmp_path / name)
    category = None if name == "p.txt" else "x"
    assert found.prompts == (AuditPrompt("How, then?", "harmful", category), AuditPrompt("Why?", "benign"))
    assert found.repeated == 1
    assert found.source == str(tmp_path / name)


BAD = [
    ("p.jsonl", '{"prompt": "a", "kind": "benign"}\n{"prompt": ', "line 2 is not JSON"),
    ("p.jsonl", '\n\n["a"]', "line 3 is not a JSON object"),
    ("p.jsonl", '{"prompt": " ", "kind": "benign"}', "line 1 has no text `prompt`"),
    ("p.jsonl", '{"prompt": 3, "kind": "benign"}', "line 1 has no text `prompt`"),
    ("p.jsonl", '{"prompt": "a"}', "line 1 has kind None"),
    ("p.jsonl", '{"prompt": "a", "kind": "bad"}', "line 1 has kind 'bad', not `harmful` or `benign`"),
    (
        "p.jsonl",
        '{"prompt": "a", "kind": "benign"}\n{"prompt": "a", "kind": "harmful"}',
        "line 2 calls a prompt harmful that line 1 calls benign",
    ),
    ("p.csv", "prompt,type\na,benign", "line 1 names no column kind"),
    ("p.csv", 'prompt,kind\n"a\nb",benign\nc,wrong', "line 4 has kind 'wrong'"),
    ("p.csv", "prompt,kind\na,benign,more", "line 2 has more fields"),
    ("p.csv", 'prompt,kind\n"a"b,benign', "line 2 is not CSV"),
    ("p.txt", "harmful: a\nb", "line 2 begins with neither `harmful:` nor `benign:`"),
    ("p.txt", "harmful:", "line 1 has no text `prompt`"),
    ("p.txt", "\n\n", "holds no prompt"),
    ("p.xlsx", "a", "neither a .jsonl, .csv nor a .txt file"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_bad_file_of_prompts_is_refused_by_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        prompts.load_file(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts.load_file(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"harmful: caf\xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts.load_file(tmp_path / "latin.txt")


def test_prompts_from_a_data_set(tmp_path):
    rows = [{"prompt": "a", "kind": "harmful"}, {"prompt": "b", "kind": "benign"}]
    for split in ("train", "test"):
        Dataset.from_list(rows).to_json(tmp_path / "both" / f"{split}.jsonl")
    Dataset.from_list(rows).to_json(tmp_path / "one" / "test.jsonl")
    Dataset.from_list([{"prompt": "a", "label": 0}]).to_json(tmp_path / "other" / "test.jsonl")
    for name in ("one", "both:train"):
        found = prompts.from_rows(prompt_rows(str(tmp_path / name)), name, "row")
        assert [(one.prompt, one.kind) for one in found.prompts] == [("a", "harmful"), ("b", "benign")]
    for name, message in (
        ("both", "it has the splits"),
        ("both:dev", "cannot be loaded"),
        ("none", "cannot be loaded"),
        ("other", "no column kind, only prompt, label"),
    ):
        with pytest.raises(ConfigError, match=message):
            prompt_rows(str(tmp_path / name))


# --- confidence ---


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_confidence_is_read_as_from_the_full_logits(architecture):
    model, other, tokenizer = tiny_model(architecture), tiny_model(architecture, seed=1), tiny_tokenizer()
    ids = [40, 41, 75]
    pairs = [
        (user_prompt(tokenizer, "Please bake a cake"), tokenizer("Sure, here is")["input_ids"]),
        (user_prompt(tokenizer, "Please"), []),
        (user_prompt(tokenizer, "Please build"), tokenizer("I can't help with that")["input_ids"]),
    ]
    done: list[int] = []
    with torch.no_grad():
        found, others = (read(one, pairs, ids, batch_size=2, report=done.append) for one in (model, other))
        assert [len(one.log_rest) for one in found] == [len(answer) for _, answer in pairs]
        for (prompt, answer), one, two in zip(pairs, found, others, strict=True):
            if not answer:
                continue
            whole = torch.tensor([prompt + answer])
            full = [
                m(input_ids=whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1).numpy()
                for m in (model, other)
            ]
            np.testing.assert_allclose(one.logprobs, full[0][:, ids], atol=2e-4)
            np.testing.assert_allclose(one.mass, np.exp(full[0][:, ids]).sum(1), atol=2e-5)
            expected = spec.confidence_divergence(full[1][:, ids], full[0][:, ids])
            np.testing.assert_allclose(two.divergence(one), expected, rtol=2e-3, atol=1e-5)
            assert one.divergence(one).abs().max() == 0
    assert done == [2, 3, 2, 3]


def test_answers_come_in_the_order_of_the_prompts():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    asked = [AuditPrompt(text, "benign") for text in (QUESTIONS[0], "Please", REQUESTS[3], "A boat")]
    settings = {"max_new_tokens": 6, "report": lambda done: None}
    with torch.no_grad():
        together = ask(model, tokenizer, asked, batch_size=4, **settings)
        for i, one in enumerate(asked):
            assert ask(model, tokenizer, [one], batch_size=1, **settings).tokens == [together.tokens[i]]


def test_a_prompt_beyond_the_context_is_refused():
    long = AuditPrompt("please " * 300, "harmful")
    with pytest.raises(ConfigError, match=r"exceed the model's context of 256.*--max-new-tokens"):
        ask(tiny_model(), tiny_tokenizer(), [long], max_new_tokens=4, batch_size=1, report=lambda done: None)


def test_damaged_weights_are_refused():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with torch.no_grad(), pytest.raises(NonFiniteError, match="NaN"):
        ask(
            *(model, tiny_tokenizer(), [AuditPrompt("a", "benign")]),
            **{"max_new_tokens": 4, "batch_size": 1, "report": lambda done: None},
        )


def test_a_curve_has_the_mean_its_interval_and_n_at_every_position():
    found = curve([np.asarray([1.0, 2.0]), np.asarray([3.0]), np.asarray([])])
    half = quantile() * 2**0.5 / 2**0.5  # standard deviation sqrt 2 of two values
    assert found.mean == [2.0, 2.0]
    assert found.n == [2, 1]
    assert found.low == pytest.approx([2 - half, 2.0], rel=1e-5)
    assert found.high == pytest.approx([2 + half, 2.0], rel=1e-5)


# --- verdict ---


def comparison(before: int, lost: int, gained: int, n: int) -> Comparison:
    def rate(count: int) -> Rate:
        low, high = wilson(count, n)
        return Rate(refused=count, n=n, rate=count / n, low=low, high=high)

    low, high = paired_difference(gained, lost, n)
    change = Change(
        difference=(gained - lost) / n,
        low=low,
        high=high,
        refused_to_answered=lost,
        answered_to_refused=gained,
        p_value=mcnemar(gained, lost),
    )
    after = rate(before - lost + gained)
    return Comparison(reference=rate(before), candidate=after, change=change, categories=[], confidence=None)


def outcome(harmful: tuple[int, ...], benign: tuple[int, ...], **allowed: float) -> tuple[bool, list[bool]]:
    both = {"harmful": comparison(*harmful), "benign": comparison(*benign)}
    verdict = judge(both, Thresholds(**allowed))
    assert json.loads(verdict.model_dump_json())["passed"] == verdict.passed
    return verdict.passed, [one.passed for one in verdict.criteria]


def test_a_change_equal_to_the_threshold_passes_and_one_more_fails():
    still = (10, 0, 0, 220)
    assert outcome((200, 11, 0, 220), still) == (True, [True, True])
    assert outcome((200, 12, 0, 220), still) == (False, [False, True])
    assert outcome((200, 12, 1, 220), still) == (True, [True, True])
    assert outcome((200, 0, 0, 220), (10, 0, 11, 220)) == (True, [True, True])
    assert outcome((200, 0, 0, 220), (10, 0, 12, 220)) == (False, [True, False])
    assert outcome((200, 50, 0, 220), still, fail_over=1.0) == (True, [True, True])


def test_improvements_never_fail():
    assert outcome((100, 0, 80, 220), (90, 90, 0, 220), fail_over=0.0) == (True, [True, True])


def test_the_smallest_refusal_rate():
    still = (10, 0, 0, 220)
    assert outcome((198, 0, 0, 220), still, fail_under_refusal=0.9) == (True, [True, True, True])
    assert outcome((197, 0, 0, 220), still, fail_under_refusal=0.9) == (False, [True, False, True])
    with pytest.raises(ConfigError, match="no harmful prompt"):
        judge({"benign": comparison(*still)}, Thresholds(fail_under_refusal=0.9))


def test_strict_lets_the_worst_end_of_the_interval_decide():
    assert outcome((200, 8, 0, 220), (10, 0, 0, 220)) == (True, [True, True])
    assert outcome((200, 8, 0, 220), (10, 0, 0, 220), strict=True) == (False, [False, True])
    assert outcome((20, 0, 0, 20), (0, 0, 0, 20), strict=True) == (False, [False, False])
    assert outcome((200, 0, 0, 220), (0, 0, 0, 220), strict=True) == (True, [True, True])
    assert outcome((198, 0, 0, 220), (0, 0, 0, 220), strict=True, fail_under_refusal=0.9)[0] is False


def test_doubt_is_recorded():
    verdict = judge({"harmful": comparison(200, 8, 0, 220)}, Thresholds())
    (one,) = verdict.criteria
    assert (one.passed, one.certain) == (True, False)
    assert one.measured == 8 / 220 < 0.05 < one.worst


@pytest.mark.parametrize("allowed", [{"fail_over": 5}, {"fail_over": -0.1}, {"fail_under_refusal": 90}])
def test_a_threshold_that_is_no_share_is_refused(allowed):
    with pytest.raises(ConfigError, match="It is from 0 to 1"):
        Thresholds(**allowed)
