"""Receipts, and runs that go on where another stopped, in `transformers.Trainer` and in TRL's `SFTTrainer`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from both import (
    CONFIG,
    HELD,
    SAVING,
    changed,
    each_kind,
    each_trainer,
    resumes_as_one,
)
from loop import FEW_ANCHORS, trained
from pact_transformers.first_step import CheckFirstStep
from sft import TOKENIZER, TOKENS
from tiny import tiny_model
from transformers import TrainerCallback

import pact_plugin as pact
from pact_plugin.errors import ReceiptError, StoreError
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run


@each_kind
@each_trainer
def test_an_interrupted_run_resumes_as_one(tmp_path, build, with_lora):
    def trainer(folder: Path, steps: int) -> Any:
        settings = {"learning_rate": 5e-3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
        return pact.attach(build(folder, with_lora=with_lora, max_steps=steps, **settings, **SAVING), CONFIG)

    resumes_as_one(tmp_path, trainer)
    for folder in ("checkpoint-2", "checkpoint-4", "."):
        assert verify_run(tmp_path / "cut" / folder).startswith("constrained:")
    assert "4 steps" in verify_run(tmp_path / "cut")
    assert pact.SafetyTokens.load(tmp_path / "cut" / "pact/safety_tokens.safetensors") == TOKENS
    assert not list((tmp_path / "cut").glob("checkpoint-*/pact_reference*"))


@each_trainer
def test_a_train_that_was_set_on_the_trainer_runs_inside_of_ours(tmp_path, build):
    """Unsloth sets one; called in place of ours, it left the run without a receipt and resumed any checkpoint."""

    def wrapped(trainer: Any) -> Any:
        inner = trainer.train

        def train(*args: Any, **kwargs: Any) -> Any:
            called.append(args)
            return inner(*args, **kwargs)

        trainer.train = train
        return trainer

    called: list[Any] = []
    settings = {"gradient_accumulation_steps": 2, **SAVING}
    pact.attach(wrapped(build(tmp_path, max_steps=2, **settings)), CONFIG).train()
    assert Receipt.read(tmp_path).steps == [[1, 2]]
    resumed = pact.attach(wrapped(build(tmp_path, max_steps=4, **settings)), CONFIG)
    resumed.train(resume_from_checkpoint=True)
    assert Receipt.read(tmp_path).steps == [[1, 4]]
    assert called == [(None,), (True,)]


@each_trainer
def test_a_run_is_not_resumed_with_other_settings(tmp_path, build):
    pact.attach(build(tmp_path, max_steps=2, **SAVING), CONFIG).train()
    for changes, words in (
        ({"anchors": FEW_ANCHORS | {"per_step": 4}}, "constrained differently: anchors.per_step was 2"),
        ({"weight": 1.0}, r"constrained differently: weight was 2\.0"),
        ({"hold_data": False}, "constrained differently: hold_data"),
    ):
        other = pact.attach(
            build(tmp_path, max_steps=4),
            changed(CONFIG, advanced={"store": str(tmp_path / "other")}, **changes),
        )
        with pytest.raises(ReceiptError, match=words):
            other.train(resume_from_checkpoint=True)


@each_trainer
def test_a_checkpoint_without_a_receipt_is_not_resumed(tmp_path, build):
    build(tmp_path, max_steps=2, **SAVING).train()
    constrained = pact.attach(build(tmp_path, max_steps=4), CONFIG)
    with pytest.raises(ReceiptError, match="no receipt"):
        constrained.train(resume_from_checkpoint=True)
    with pytest.raises(ReceiptError, match="no receipt"):
        verify_run(tmp_path / "checkpoint-2")


@each_trainer
def test_a_run_that_goes_on_without_the_constraint_does_not_verify(tmp_path, build):
    pact.attach(build(tmp_path, max_steps=2, **SAVING), CONFIG).train()
    assert verify_run(tmp_path).startswith("constrained:")
    build(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(ReceiptError, match="steps 3-4 of 4 were not constrained"):
        verify_run(tmp_path)


@each_trainer
@pytest.mark.parametrize("steps", [4, 2])
def test_a_folder_that_was_trained_again_without_the_constraint_does_not_verify(tmp_path, build, steps):
    pact.attach(build(tmp_path, max_steps=4, **SAVING), CONFIG).train()
    build(tmp_path, max_steps=steps, **SAVING).train()
    trained_again = tmp_path / f"checkpoint-{steps}"
    for folder in (tmp_path, trained_again):
        with pytest.raises(ReceiptError, match="the receipt is an earlier run's"):
            verify_run(folder)
    constrained = pact.attach(build(tmp_path, max_steps=6), CONFIG)
    with pytest.raises(ReceiptError, match=r"checkpoint=.*earlier run's.*or begin a new run"):
        constrained.train(resume_from_checkpoint=str(trained_again))
    # What the run without left is older than a receipt that is written now.
    pact.attach(build(tmp_path, max_steps=4, save_steps=4, save_strategy="steps"), CONFIG).train()
    assert "4 steps" in verify_run(tmp_path)


@each_trainer
def test_a_training_that_is_broken_off_leaves_its_receipt(tmp_path, build):
    """Axolotl saves the model then, and leaves."""

    class Leave(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise SystemExit(0)

    trainer = pact.attach(build(tmp_path, max_steps=4), CONFIG)
    trainer.add_callback(Leave())
    with pytest.raises(SystemExit):
        trainer.train()
    assert Receipt.read(tmp_path).steps == [[1, 2]]
    assert "2 steps" in verify_run(tmp_path)


@each_trainer
def test_what_breaks_a_training_off_is_told_though_its_receipt_cannot_be_written(tmp_path, build, caplog):
    """After an accelerator's error not even what was measured can be read."""

    def unreadable(*args: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    class Leave(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.pact.record.write = unreadable
            raise SystemExit(3)

    trainer = pact.attach(build(tmp_path), CONFIG)
    trainer.add_callback(Leave())
    with pytest.raises(SystemExit):
        trainer.train()
    assert "the receipt could not be written: CUDA error" in caplog.text


@each_trainer
def test_a_second_training_begins_the_receipt_anew(tmp_path, build):
    """As the trainer counts its steps; and nothing of what measured the loss is left."""
    trainer = pact.attach(build(tmp_path, with_lora=True), CONFIG)
    trainer.train()
    first = Receipt.read(tmp_path)
    assert first.steps == [[1, 3]]
    trainer.args.max_steps = 2
    trainer.train()
    second = Receipt.read(tmp_path)
    assert (second.steps, second.total_steps) == ([[1, 2]], 2)
    assert 0 < second.trained_tokens < first.trained_tokens
    assert 0 < second.positions < first.positions
    assert second.sums["loss"][1] == second.trained_tokens
    assert CheckFirstStep not in map(type, trainer.callback_handler.callbacks)
    assert verify_run(tmp_path).startswith("constrained:")


# --- with a table ---


@each_trainer
def test_a_second_training_on_other_data_needs_a_new_trainer(tmp_path, build):
    rows = build(tmp_path).train_dataset
    trainer = build(tmp_path)
    trainer.train_dataset = trainer.eval_dataset = rows.select(range(8))
    pact.attach(trainer, HELD).train()
    trainer.train_dataset = rows.select(range(8, 16))
    with pytest.raises(
        StoreError, match=r"is not in the table.*attach a new trainer, with `reference: PATH`"
    ):
        trainer.train()


@each_trainer
def test_an_adapter_that_held_training_finds_its_table_again(tmp_path, build):
    def trainer(folder: Path, steps: int) -> Any:
        return pact.attach(build(folder, model=trained(), max_steps=steps, **SAVING), HELD)

    resumes_as_one(tmp_path, trainer)
    assert "reference table" in verify_run(tmp_path / "cut")


@each_trainer
def test_without_the_table_a_resumed_run_stops(tmp_path, build):
    def trainer() -> Any:
        return pact.attach(build(tmp_path, max_steps=4, **SAVING), HELD)

    trainer().train()
    shutil.rmtree(tmp_path / "_pact_store")
    with pytest.raises(StoreError, match=r"store=.*is not in the table.*no longer the aligned"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@each_kind
@each_trainer
@pytest.mark.parametrize("named", [False, True], ids=["another", "added"])
def test_evaluation_data_that_a_resumed_run_brings(tmp_path, caplog, build, with_lora, named):
    """Clause C7.7: full fine-tuning has no aligned model any more, so that evaluation reports nothing."""

    def trainer(steps: int, evaluated: str, **settings: Any) -> Any:
        built = build(tmp_path, with_lora=with_lora, max_steps=steps, **SAVING, **settings)
        rows = built.eval_dataset
        built.train_dataset, old = rows.select(range(8)), rows.select(range(8, 12))
        sets = {"old": old, "new": rows.select(range(12, 16))}
        built.eval_dataset = {name: sets[name] for name in evaluated.split()} if named else sets[evaluated]
        return pact.attach(built, HELD)

    trainer(2, "old").train()
    resumed = trainer(4, "old new" if named else "new", eval_strategy="steps", eval_steps=4)
    resumed.train(resume_from_checkpoint=True)
    logs = {name for log in resumed.state.log_history for name in log}
    prefixes = ["eval_old", "eval_new"] if named else ["eval"]
    assert {f"{prefix}_loss" for prefix in prefixes} <= logs
    known = prefixes if with_lora else prefixes[:-1]
    assert {name for name in logs if name.endswith("_pact/divergence")} == {
        f"{prefix}_pact/divergence" for prefix in known
    }
    assert ("left out of this evaluation" in caplog.text) != with_lora
    assert resumed.pact.record.receipt.steps == [[1, 4]]


@each_trainer
def test_a_table_of_something_else_is_refused(tmp_path, build):
    pact.attach(build(tmp_path), HELD).train()
    other = pact.SafetyTokens.for_tokenizer(TOKENIZER, [50, 51], [1.0, 1.0])
    with pytest.raises(
        StoreError, match=r"store=.*other predictions .other safety tokens.*For a new run delete the folder"
    ):
        pact.attach(build(tmp_path), changed(HELD, safety_tokens=other))
    with pytest.raises(StoreError, match="predictions of another model"):
        pact.attach(build(tmp_path, model=tiny_model(seed=1)), HELD)


@each_trainer
def test_resuming_with_another_model_is_refused_by_the_receipt(tmp_path, build):
    pact.attach(build(tmp_path, max_steps=2, **SAVING), HELD).train()
    elsewhere = changed(HELD, advanced={"store": str(tmp_path / "elsewhere")})
    other = pact.attach(build(tmp_path, model=tiny_model(seed=1), max_steps=4), elsewhere)
    with pytest.raises(ReceiptError, match="another aligned model"):
        other.train(resume_from_checkpoint=True)
