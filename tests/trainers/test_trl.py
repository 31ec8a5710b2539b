"""PACT in the ways that TRL's SFTTrainer alone trains: packed, padding-free, several turns, its own losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from both import CONFIG, HELD, each_kind, with_reference_in_steps
from datasets import Dataset
from forks import run_script
from sft import (
    ON_A_CPU,
    TOKENIZER,
    TOKENS,
    completions,
    conversations,
    lora,
    question,
    sft_trainer,
    train_logs,
)
from tiny import tiny_model, tiny_tokenizer
from trl import SFTConfig, SFTTrainer

import pact_plugin as pact
from pact_plugin.data.chat_template import prompt_ends
from pact_plugin.data.positions import positions_of
from pact_plugin.data.responses import Responses, endings_of
from pact_plugin.errors import ReferenceModelError
from pact_plugin.model.head import language_head
from pact_plugin.reference.pool import ending
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

PACKED = {"packing": True, "packing_strategy": "bfd", "max_length": 96}
CHECKPOINTED = {"gradient_checkpointing": True}
WAYS = {
    "checkpointed": CHECKPOINTED | {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": CHECKPOINTED | {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
}
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"loss_type": "nll"}, completions),
        ({"loss_type": "chunked_nll"}, completions),
        ({"loss_type": "dft"}, completions),
        (PACKED, completions),
        ({"padding_free": True, "max_length": None}, completions),
        ({"assistant_only_loss": True}, conversations),
        ({"assistant_only_loss": True, "loss_type": "chunked_nll"}, conversations),
        ({"completion_only_loss": True}, completions),
        ({"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}, completions),
        ({"bf16": True, "activation_offloading": False}, completions),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
@each_kind
@pytest.mark.filterwarnings("ignore")
def test_modes(tmp_path, settings, data, with_lora):
    trainer = sft_trainer(tmp_path, data=data(), peft=lora() if with_lora else None, **settings)
    assert pact.attach(trainer, CONFIG) is trainer
    assert isinstance(trainer, SFTTrainer)
    trainer.train()
    logs = train_logs(trainer)
    assert len(logs) == 3
    # The model is read before training, in float32.
    rounding = 2e-4 if settings.get("bf16") else 2e-6
    for name in ("pact/divergence", "pact/anchor_divergence"):
        assert logs[0][name] == pytest.approx(0, abs=rounding), name
        assert logs[-1][name] > logs[0][name] + 1e-7, name
    assert 0 < sum(log["pact/eased"] for log in logs) < len(logs)
    assert trainer.pact.record.receipt.reference == "table"
    assert trainer.pact.record.receipt.positions > 0


def logs_of(folder: Path, with_lora: bool, layers: int = 2, **settings: Any) -> list[dict[str, float]]:
    model = tiny_model(num_hidden_layers=layers)
    trainer = sft_trainer(folder, model=model, peft=lora() if with_lora else None, **settings)
    pact.attach(trainer, CONFIG).train()
    assert trainer.pact.record.receipt.reference == "table"
    return train_logs(trainer)


@pytest.fixture(scope="module")
def plain_logs(tmp_path_factory) -> dict[bool, list[dict[str, float]]]:
    """Of the same run without and with an adapter, as a mapping from `with_lora`."""
    folder = tmp_path_factory.mktemp("plain")
    return {with_lora: logs_of(folder / str(with_lora), with_lora) for with_lora in (False, True)}


@pytest.mark.parametrize("way", WAYS)
@each_kind
@pytest.mark.filterwarnings("ignore")
def test_steps_that_run_otherwise_are_those_of_a_plain_run(tmp_path, plain_logs, way, with_lora):
    require_alike(logs_of(tmp_path, with_lora, **WAYS[way]), plain_logs[with_lora], 1e-4)


@pytest.mark.parametrize(("with_lora", "padding"), [(False, {"pad_to_multiple_of": 64}), (True, {})])
@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_are_those_of_a_plain_run(tmp_path, with_lora, padding):
    """Batches of one length and of several; of one layer, as all of them are traced many times, for seconds each."""
    settings = padding | {"learning_rate": 5e-3}
    plain, other = (logs_of(tmp_path, with_lora, 1, **settings, **more) for more in ({}, COMPILED))
    # AdamW's first steps are nearly the signs of gradients, some of which rounding turns.
    require_alike(other, plain, 2e-3)


def require_alike(other: list[dict[str, float]], plain: list[dict[str, float]], rounding: float) -> None:
    for ours, theirs in zip(other, plain, strict=True):
        for name in ("loss", "pact/loss", "pact/eased", "pact/divergence", "pact/anchor_divergence"):
            assert ours[name] == pytest.approx(theirs[name], rel=rounding, abs=1e-6), name
    assert plain[-1]["pact/anchor_divergence"] > 1e-6
    assert plain[-1]["pact/divergence"] > 1e-5


@each_kind
@pytest.mark.filterwarnings("ignore")
def test_the_aligned_model_is_asked_in_the_precision_of_the_run(tmp_path, with_lora):
    """Flash attention takes no float32, in which TRL loads models; and what is compared rounds alike."""
    trainer = sft_trainer(tmp_path, peft=lora() if with_lora else None, bf16=True)
    inside: list[bool] = []
    language_head(trainer.model).decoder.register_forward_hook(
        lambda *_: inside.append(torch.is_autocast_enabled("cpu"))
    )
    pact.attach(trainer, CONFIG)
    asked = len(inside)
    trainer.train()
    assert 0 < asked < len(inside)
    assert all(inside)


# --- positions ---


def test_packing_constrains_the_same_positions_as_padding(tmp_path):
    def epoch(**settings: Any) -> tuple[int, float]:
        trainer = sft_trainer(
            tmp_path, data=completions(12), learning_rate=0.0, max_steps=-1, num_train_epochs=1, **settings
        )
        with_reference_in_steps(trainer, HELD)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        trainer.train()
        receipt = trainer.pact.record.receipt
        return receipt.positions, receipt.mean("divergence")

    padded, packed = epoch(), epoch(packing=True, max_length=96)
    assert padded[0] == packed[0] == sum(len(completion_ids(row)) for row in completions(12))
    assert packed[1] == pytest.approx(padded[1], rel=1e-4)
    assert padded[1] > 1e-3


def completion_ids(row: dict[str, Any]) -> list[int]:
    prompt = TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    return TOKENIZER.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)[len(prompt) :]


def test_two_assistant_turns_are_two_responses(tmp_path):
    trainer = sft_trainer(tmp_path, data=conversations(4), assistant_only_loss=True, max_steps=1)
    pact.attach(trainer, CONFIG)
    batch = next(iter(trainer.get_train_dataloader()))
    found = positions_of(batch)
    assert int(found.response.max()) + 1 == 2 * batch["labels"].shape[0]
    assert (found.index == 0).sum() == 2 * batch["labels"].shape[0]


@pytest.mark.parametrize("settings", [{"data": conversations()}, {"completion_only_loss": False}])
def test_prompts_that_are_not_masked_are_told_of_when_attaching_and_in_the_receipt(tmp_path, settings):
    """Conversations are trained on whole by default, with which easing sees no request."""
    with pytest.warns(UserWarning, match=r"no token is masked.*easing sees no request.*assistant_only_loss"):
        trainer = pact.attach(sft_trainer(tmp_path, **settings), CONFIG)
    trainer.train()
    trainer.save_model()
    assert "NO TOKEN WAS MASKED" in verify_run(tmp_path)


@pytest.mark.parametrize("template", ["qwen3", "qwen3_5_think", "glm4moe"])
def test_answers_of_models_that_can_think_begin_where_the_probe_is_fitted(tmp_path, template):
    """TRL's answers hold the empty thoughts with which a model is asked not to think (spec C11.2)."""
    text = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = tiny_tokenizer(chat_template=text)
    args = SFTConfig(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[])
    trainer = SFTTrainer(tiny_model(), args=args, train_dataset=completions(), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    responses = Responses.of(batch["labels"], positions_of(batch))
    found = {responses.before(number, batch["input_ids"], 4) for number in range(len(responses))}
    _, trained = (ending(prompts) for prompts in prompt_ends(tokenizer, ["How?", "Why not?"]))
    assert {one[-len(trained) :] for one in found} == {trained}


def test_answers_that_begin_with_a_line_break_are_eased(tmp_path, caplog):
    """TRL's own template for Qwen2.5 has it so; the probe is fitted there, too."""
    text = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    args = SFTConfig(
        **({"output_dir": str(tmp_path)} | ON_A_CPU | {"assistant_only_loss": True, "max_length": 512})
    )
    tokenizer = tiny_tokenizer(chat_template=text)
    trainer = SFTTrainer(
        tiny_model(), args=args, train_dataset=conversations(), processing_class=tokenizer, peft_config=lora()
    )
    pact.attach(trainer, {"safety_tokens": TOKENS})
    trainer.train()
    assert any(log["pact/eased"] > 0 for log in train_logs(trainer))
    assert "answers in the data begin behind" not in caplog.text
    batch = next(iter(trainer.get_train_dataloader()))
    (behind,) = endings_of(batch)
    assert tokenizer.decode(behind).endswith("assistant")


def test_data_in_another_format_is_told_of(tmp_path, caplog):
    rows = [{"prompt": f"### {question(i)} ### Response: ", "completion": "Sure"} for i in range(8)]
    trainer = pact.attach(sft_trainer(tmp_path, data=Dataset.from_list(rows), max_steps=1), CONFIG)
    trainer.train()
    assert caplog.text.count("answers in the data begin behind") == 1


# --- ranks ---


def test_two_ranks_log_and_count_what_one_process_does(tmp_path):
    def run(name: str, ranks: int, batch_size: int) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        run_script("ddp_sft.py", str(folder), str(batch_size), log=tmp_path / f"{name}.log", ranks=ranks)
        return json.loads((folder / "result.json").read_text())

    alone, together = run("one", 0, 4), run("two", 2, 2)
    assert (alone["ranks"], together["ranks"]) == (1, 2)
    for a, b in zip(alone["logs"], together["logs"], strict=True):
        for name in ("loss", "divergence", "eased"):
            assert a[f"pact/{name}"] == pytest.approx(b[f"pact/{name}"], rel=1e-3, abs=1e-6), name
    for name in ("divergence", "eased"):
        ours, theirs = (run["eval"][f"eval_pact/{name}"] for run in (alone, together))
        assert ours == pytest.approx(theirs, rel=1e-3), name
    for name, norm in alone["norms"].items():
        assert together["norms"][name] == pytest.approx(norm, rel=1e-5)
    one, two = (Receipt.read(tmp_path / run / "checkpoint-3") for run in ("one", "two"))
    assert (one.steps, one.positions, one.trained_tokens) == (two.steps, two.positions, two.trained_tokens)
    assert one.table == two.table is not None
    assert "3 steps" in verify_run(tmp_path / "two" / "checkpoint-3")


def test_one_of_two_ranks_may_save_alone_while_it_trains(tmp_path):
    assert "saved alone" in run_script("lone_save.py", str(tmp_path), log=tmp_path / "log", ranks=2)


def test_an_adapter_that_the_model_added_itself_is_refused(tmp_path):
    """It would be taken for part of the aligned model."""
    model = tiny_model()
    try:
        model.add_adapter(lora())
    except ValueError as error:  # the newest PEFT is too old for the newest transformers
        pytest.skip(str(error))
    with pytest.raises(ReferenceModelError, match="get_peft_model"):
        pact.attach(sft_trainer(tmp_path, model=model), CONFIG)
