"""The aligned model is asked once and its answers are kept: where, and for which models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop import FEW_ANCHORS, TOKENIZER, a_batch, adapted, anchors_of, loss_of, moved, probe_of
from peft import LoraConfig, get_peft_model
from pools import PROMPTS, built, pool_of
from tiny import tiny_aligned_model, tiny_model, tiny_tokenizer

from pact_plugin import PactConstraint, assemble
from pact_plugin.errors import ConfigError, NonFiniteError
from pact_plugin.reference import cache, pool_tokens
from pact_plugin.reference.source import build_source

pytestmark = pytest.mark.usefixtures("folder")


def test_a_second_constraint_of_the_same_model_asks_nothing(generated, folder):
    first = built(tiny_model())
    assert len(generated) == 1
    (file,) = folder.iterdir()
    second = built(tiny_model(), hold_data=True)
    assert len(generated) == 1
    assert probe_of(second) == probe_of(first)
    assert list(folder.iterdir()) == [file]


def test_the_pool_of_anchors_is_another_only_where_the_prompts_are_ones_own(generated, monkeypatch):
    monkeypatch.setattr("pact_plugin.terms.anchor_prompts.for_pool", assemble.for_pool)
    built(tiny_model(), anchors=True)
    assert len(generated) == 1
    for changes in ({"anchors": {"prompts": "harmful"}}, {"anchors": True, "easing": False}):
        built(tiny_model(), **changes)
        assert len(generated) == 1
    own = built(tiny_model(), anchors=FEW_ANCHORS)
    assert len(generated) == 2
    assert len(anchors_of(own).documents) == 20


def test_too_few_refusals_are_counted_of_all_that_were_asked():
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"refuses 0 of 20 harmful prompts, fewer than 8"):
        pool_tokens.tokens_of(pool_of(model), build_source("itself", model), TOKENIZER, 16)


def overflowing() -> Any:
    """The same function in float32; in float16 its states overflow."""
    model = tiny_aligned_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2e5)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(2e5)
            layer.mlp.down_proj.weight.mul_(2e5)
    return model


@pytest.mark.parametrize("easing", [True, False])
def test_states_that_overflow_are_not_kept(folder, easing):
    """Kept, they would be what every later run of the model is held to."""
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(NonFiniteError, match="float16 overflows"):
        built(overflowing(), easing=easing, anchors=FEW_ANCHORS)
    assert not folder.exists() or not list(folder.glob("*.safetensors"))
    built(overflowing(), easing=easing, anchors=FEW_ANCHORS)


# --- the same model ---


def test_an_adapter_that_changes_nothing_is_the_same_model(generated):
    model = adapted()
    constraint = built(tiny_model())
    assert probe_of(built(model)) == probe_of(constraint)
    assert len(generated) == 1


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("how", ["biases", "norms", "dora"])
def test_so_is_one_beside_which_weights_are_trained_or_that_rounds(tmp_path, generated, how, store):
    """Its adapter starts at random, also in a run that is resumed."""

    def constraint(seed: int) -> PactConstraint:
        torch.manual_seed(seed)
        adapter = LoraConfig(
            r=4,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            bias="lora_only" if how == "biases" else "none",
            use_dora=how == "dora",
        )
        model = get_peft_model(tiny_model("qwen2").bfloat16(), adapter)
        for name, parameter in model.named_parameters():
            if how == "norms" and "norm" in name:
                parameter.requires_grad_(True)
        return built(model, **({"advanced": {"store": tmp_path}} if store else {}))

    first = constraint(1)
    first.fill([a_batch()], progress=False) if store else None
    second = constraint(2)
    assert second.reference.digest == first.reference.digest
    assert len(generated) == 1
    if store:
        second.fill([a_batch(1)], progress=False)


def test_the_same_weights_in_another_type_are_the_same_model(generated):
    """`tokens select` loads them as they are stored, TRL in float32."""
    stored = built(tiny_model().bfloat16())
    assert probe_of(built(tiny_model().bfloat16().float())) == probe_of(stored)
    assert len(generated) == 1


# --- the folder ---


def test_where_answers_are_kept(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PACT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "pact_plugin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "pact_plugin"


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch):
    for name in ("PACT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(ConfigError, match=r"no home folder.*Set \$PACT_CACHE to a folder"):
        cache.cache_folder()


def test_whoever_may_read_the_folder_may_read_its_files(generated, folder):
    built(tiny_model())
    (file,) = folder.iterdir()
    other = folder / "other"
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode


def test_a_folder_that_cannot_be_written_costs_the_saving_alone(generated, folder, caplog):
    folder.write_text("a file is in its place")
    for times in (1, 2):
        loss_of(built(model := tiny_model()), moved(model), a_batch())
        assert len(generated) == times
    assert "cannot be written" in caplog.text
    assert "$PACT_CACHE" in caplog.text


# --- what a user is told ---


def test_a_model_that_answers_on_the_cpu_beside_an_accelerator(generated, folder, caplog, monkeypatch):
    """As under FSDP and DeepSpeed, where a trainer moves the model to its device when training begins."""
    pool_of(tiny_model())
    assert "still on the CPU" not in caplog.text
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    pool_of(tiny_model())
    assert "still on the CPU" not in caplog.text, "it is not asked again"
    pool_of(tiny_model(seed=1))
    assert "still on the CPU" in caplog.text
    assert "`pact-plugin tokens select MODEL`" in caplog.text
    assert str(folder) in caplog.text


def test_a_tokenizer_without_a_chat_template_is_warned_of_in_each_run():
    tokenizer = tiny_tokenizer(chat_template=None)
    for _ in range(2):  # the second finds the answers kept
        with pytest.warns(UserWarning, match="no chat template"):
            pool_of(tiny_model(), PROMPTS[:4], tokenizer)


def test_a_bar_shows_that_the_model_is_asked(folder, capsys):
    for shown in (True, False):
        pool_of(tiny_model(), PROMPTS[:4])
        assert ("the model answers prompts, once" in capsys.readouterr().err) == shown
