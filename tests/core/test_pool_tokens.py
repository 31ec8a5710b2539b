"""Safety tokens are kept beside the answers that they are chosen from."""

from __future__ import annotations

import pytest
from pools import BARE, TAUGHT, ask_about, built, truncated
from tiny import tiny_aligned_model

from pact_plugin import PactConstraint, judge
from pact_plugin.data.prompts import for_pool
from pact_plugin.errors import ConfigError
from pact_plugin.reference import pool_tokens

pytestmark = pytest.mark.usefixtures("folder")


def chosen(monkeypatch, **changes) -> PactConstraint:
    """With tokens that are chosen from the model itself."""
    ask_about(monkeypatch, TAUGHT)
    return built(tiny_aligned_model(), **(BARE | {"safety_tokens": None} | changes))


def test_tokens_are_kept_beside_the_answers(generated, folder, monkeypatch):
    first = chosen(monkeypatch)
    assert len(list(folder.iterdir())) == 2
    assert first.tokens.provenance["refused"] == "10"
    monkeypatch.setattr(pool_tokens, "choose_from_answers", None)
    assert chosen(monkeypatch).tokens == first.tokens
    assert len(generated) == 1


def test_other_numbers_of_tokens_are_chosen_from_the_same_answers(generated, folder, monkeypatch):
    counts = [len(chosen(monkeypatch, advanced={"top_k": top_k}).tokens) for top_k in (50, 10, 50)]
    assert counts == [50, 10, 50]
    assert len(generated) == 1
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 10_000}, r"^advanced\.top_k=10000: out of range"),
        ({"chosen_from": "harmful"}, "^safety_tokens: the model helps with 0 of 0 benign prompts"),
        ({"chosen_from": "benign"}, "^safety_tokens: the model refuses 0 of 0 harmful prompts"),
    ],
    ids=str,
)
def test_errors_of_the_choice_name_settings(monkeypatch, changes, message):
    kind = changes.pop("chosen_from", None)
    ask_about(monkeypatch, [one for one in TAUGHT if kind in (None, one.kind)])
    with pytest.raises(ConfigError, match=message):
        built(tiny_aligned_model(), **(BARE | {"safety_tokens": None, "advanced": changes}))


def test_a_model_that_refuses_fewer_than_half_is_warned_of_in_each_run(folder, monkeypatch):
    ask_about(monkeypatch, (*TAUGHT, *for_pool().limited(60).prompts))
    for _ in range(2):  # the second finds the tokens kept
        with pytest.warns(UserWarning, match=r"Fewer than half: the model refuses \d+ of 70 harmful prompts"):
            built(tiny_aligned_model(), **(BARE | {"safety_tokens": None}))


# --- chosen anew ---


def test_tokens_that_are_spoilt_are_chosen_anew(folder, monkeypatch):
    first = chosen(monkeypatch)
    (file,) = folder.glob("*.tokens.safetensors")
    truncated(file)
    assert chosen(monkeypatch).tokens == first.tokens
    monkeypatch.setattr(pool_tokens, "choose_from_answers", None)
    assert chosen(monkeypatch).tokens == first.tokens


def test_tokens_are_chosen_anew_where_the_judge_sees_other_refusals(folder, monkeypatch):
    chosen(monkeypatch)
    refused = judge.is_refusal
    monkeypatch.setattr(judge, "is_refusal", lambda text: refused(text) or "Sure" not in text)
    chosen(monkeypatch)
    assert len(list(folder.glob("*.tokens.safetensors"))) == 1
    spared = iter(range(1000))
    monkeypatch.setattr(judge, "is_refusal", lambda text: refused(text) and next(spared) > 0)
    assert chosen(monkeypatch).tokens.provenance["refused"] == "9"
    assert len(list(folder.glob("*.tokens.safetensors"))) == 2


def test_tokens_are_chosen_anew_for_another_tokenizer(folder, monkeypatch):
    chosen(monkeypatch)
    monkeypatch.setattr(pool_tokens, "tokenizer_fingerprint", lambda tokenizer: "of another one")
    chosen(monkeypatch)
    assert len(list(folder.glob("*.tokens.safetensors"))) == 2
