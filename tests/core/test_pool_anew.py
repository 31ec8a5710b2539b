"""When the aligned model is asked anew: another model, other prompts, a file that is spoilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop import TOKENIZER, probe_of
from pools import PROMPTS, ask_about, built, pool_of, truncated
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import CHATML, tiny_model, tiny_tokenizer

from pact_plugin import judge
from pact_plugin.data.prompts import Prompt
from pact_plugin.reference import cache

pytestmark = pytest.mark.usefixtures("folder")


def another_template():
    return tiny_tokenizer(chat_template=CHATML.replace("<|im_start|>assistant", "<|im_start|>model"))


CHANGES: dict[str, dict[str, Any]] = {
    "another model": {"model": lambda: tiny_model(seed=1)},
    "a model that has moved by little": {"model": lambda: nudged(tiny_model())},
    "fewer prompts": {"prompts": PROMPTS[:-1]},
    "other prompts": {"prompts": (*PROMPTS[:-1], Prompt("What?", PROMPTS[-1].kind))},
    "another order": {"prompts": PROMPTS[::-1]},
    "another chat template": {"tokenizer": another_template},
}


def nudged(model):
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    return model


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_asked_anew(generated, folder, monkeypatch, name):
    changes = CHANGES[name]
    before = probe_of(built(tiny_model()))
    ask_about(monkeypatch, changes.get("prompts", PROMPTS))
    model = changes.get("model", tiny_model)()
    constraint = built(model, tokenizer=changes.get("tokenizer", lambda: TOKENIZER)())
    assert len(generated) == 2
    assert generated[1] is model
    assert len(list(folder.iterdir())) == 2
    same = {"a model that has moved by little", "another order"}  # of the final hidden states
    assert (probe_of(constraint) != before) or name in same
    assert probe_of(built(tiny_model())) is not None


def test_kept_states_that_are_not_finite_are_asked_anew(generated, folder):
    built(tiny_model())
    (file,) = folder.iterdir()
    hidden, metadata = cache.read_states(file)
    cache.write_states(file, hidden * torch.nan, **metadata)
    built(tiny_model())
    assert len(generated) == 2
    assert cache.read_states(file)[0].equal(hidden)


def of_another_kind(file: Path) -> None:
    save_file({"other": torch.zeros(2)}, file)


def of_fewer_answers(file: Path) -> None:
    save_file({"hidden": torch.zeros(1, 3, 32)}, file, metadata={"answers": "[[1], [2], [3]]"})


def of_answers_that_are_none(file: Path) -> None:
    save_file({"hidden": torch.zeros(1, 40, 32)}, file, metadata={"answers": "[[1], "})


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        of_another_kind,
        of_fewer_answers,
        of_answers_that_are_none,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x80\x04pickle"),
        Path.unlink,
    ],
)
def test_a_file_that_is_spoilt_is_asked_anew_and_whole_again(generated, folder, spoil):
    before = probe_of(built(tiny_model()))
    (file,) = folder.iterdir()
    spoil(file)
    assert probe_of(built(tiny_model())) == before
    assert len(generated) == 2
    assert probe_of(built(tiny_model())) == before
    assert len(generated) == 2
    with safe_open(file, framework="pt") as opened:
        assert opened.get_tensor("hidden").shape == (1, 40, 32)
    assert list(folder.iterdir()) == [file]


def test_a_judge_that_changed_judges_what_is_kept(generated, monkeypatch):
    assert not any(one.refused for one in pool_of(tiny_model()).asked)
    monkeypatch.setattr(judge, "is_refusal", lambda text: True)
    assert all(one.refused == bool(one.answer_ids) for one in pool_of(tiny_model()).asked)
    assert len(generated) == 1
