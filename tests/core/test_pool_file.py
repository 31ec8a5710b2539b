"""The aligned model is asked once, and its answers are kept, with the tokens that are chosen from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import FEW_ANCHORS, TOKENIZER, a_batch, adapted, anchors_of, loss_of, moved, probe_of, settings
from peft import LoraConfig, get_peft_model
from pools import BARE, PROMPTS, TAUGHT, ask_about, built, pool_of
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import CHATML, tiny_aligned_model, tiny_model, tiny_tokenizer

from pact_plugin import PactConstraint, assemble, judge
from pact_plugin.data.facts import DataFacts
from pact_plugin.data.prompts import Prompt, for_pool
from pact_plugin.errors import ConfigError, NonFiniteError, ReceiptError
from pact_plugin.reference import cache, pool_states, pool_tokens
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


def test_whoever_may_read_the_folder_may_read_its_files(generated, folder):
    built(tiny_model())
    (file,) = folder.iterdir()
    other = folder / "other"
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode


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


def test_kept_states_that_are_not_finite_are_asked_anew(generated, folder):
    built(tiny_model())
    (file,) = folder.iterdir()
    hidden, metadata = cache.read_states(file)
    cache.write_states(file, hidden * torch.nan, **metadata)
    built(tiny_model())
    assert len(generated) == 2
    assert cache.read_states(file)[0].equal(hidden)


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


def test_too_few_refusals_are_counted_of_all_that_were_asked():
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"refuses 0 of 20 harmful prompts, fewer than 8"):
        pool_tokens.tokens_of(pool_of(model), build_source("itself", model), TOKENIZER, 16)


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


# --- anew ---


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


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


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


def test_a_folder_that_cannot_be_written_costs_the_saving_alone(generated, folder, caplog):
    folder.write_text("a file is in its place")
    for times in (1, 2):
        loss_of(built(model := tiny_model()), moved(model), a_batch())
        assert len(generated) == times
    assert "cannot be written" in caplog.text
    assert "$PACT_CACHE" in caplog.text


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


# --- safety tokens ---


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


def test_states_where_the_datas_answers_begin_are_kept(generated, folder, monkeypatch):
    """New ones would differ by rounding on other hardware, and a run that is resumed there would not go on."""
    ask_about(monkeypatch, PROMPTS)
    header = tuple(TOKENIZER.encode("<|im_start|>assistant", add_special_tokens=False))
    data = DataFacts(endings=(header,))

    def probe():
        return probe_of(PactConstraint(tiny_model(), TOKENIZER, settings(), data=data))

    first = probe()
    assert first != probe_of(PactConstraint(tiny_model(), TOKENIZER, settings()))
    (file,) = folder.glob("*.states.safetensors")
    monkeypatch.setattr(pool_states, "end_states", None)
    assert probe() == first
    monkeypatch.undo()
    ask_about(monkeypatch, PROMPTS)
    truncated(file)
    assert probe() == first


def test_answers_lie_beside_the_run_so_that_it_goes_on_where_the_cache_is_not(
    tmp_path, generated, folder, monkeypatch
):
    ask_about(monkeypatch, (*TAUGHT, *PROMPTS))
    header = tuple(TOKENIZER.encode("<|im_start|>assistant", add_special_tokens=False))

    def begun() -> PactConstraint:
        config = settings(safety_tokens=None, advanced={"store": tmp_path / "store"})
        return PactConstraint(tiny_aligned_model(), TOKENIZER, config, data=DataFacts(endings=(header,)))

    first = begun()
    answers = tmp_path / "store" / "answers"
    assert sorted(one.name for one in answers.iterdir()) == sorted(one.name for one in folder.iterdir())
    assert len(list(answers.iterdir())) == 3, "answers, states where the data's answers begin, tokens"
    monkeypatch.setenv("PACT_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(pool_tokens, "choose_from_answers", None)
    assert (probe_of(begun()), begun().tokens) == (probe_of(first), first.tokens)
    assert len(generated) == 1
    shutil.rmtree(answers)
    begun()
    assert len(generated) == 1, "the cache has them, too, by now"
    assert len(list(answers.iterdir())) == 3


@pytest.mark.parametrize("what", ["anchors", "columns"])
def test_a_resumed_run_must_have_the_same_answers_and_probe(tmp_path, folder, what):
    """Without a table, whose header would tell: what was asked anew elsewhere differs by rounding."""
    anchors = FEW_ANCHORS | {"tokens": 4} if what == "anchors" else False
    changes = {"anchors": anchors, "easing": what == "columns"}
    built(tiny_model(), **changes).record.write(tmp_path)
    built(tiny_model(), **changes).record.resume(tmp_path)
    (file,) = folder.glob("*.safetensors")
    hidden, metadata = cache.read_states(file)
    answers = json.loads(metadata["answers"])
    if what == "anchors":
        answers = [[*answer[:1], *answer] for answer in answers]
    else:
        hidden = hidden + 0.1 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    cache.write_states(file, hidden, **(metadata | {"answers": json.dumps(answers)}))
    with pytest.raises(ReceiptError, match=rf"{what} was .*PACT_CACHE"):
        built(tiny_model(), **changes).record.resume(tmp_path)


def test_a_model_that_refuses_fewer_than_half_is_warned_of_in_each_run(folder, monkeypatch):
    ask_about(monkeypatch, (*TAUGHT, *for_pool().limited(60).prompts))
    for _ in range(2):  # the second finds the tokens kept
        with pytest.warns(UserWarning, match=r"Fewer than half: the model refuses \d+ of 70 harmful prompts"):
            built(tiny_aligned_model(), **(BARE | {"safety_tokens": None}))


def test_a_tokenizer_without_a_chat_template_is_warned_of_in_each_run():
    tokenizer = tiny_tokenizer(chat_template=None)
    for _ in range(2):  # the second finds the answers kept
        with pytest.warns(UserWarning, match="no chat template"):
            pool_of(tiny_model(), PROMPTS[:4], tokenizer)


def test_a_bar_shows_that_the_model_is_asked(folder, capsys):
    for shown in (True, False):
        pool_of(tiny_model(), PROMPTS[:4])
        assert ("the model answers prompts, once" in capsys.readouterr().err) == shown
