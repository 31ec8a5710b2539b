"""The table in both trainers: filled before the first step, then read; and what happens where there can be none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from both import (
    CONFIG,
    HELD,
    Recording,
    changed,
    each_kind,
    each_trainer,
    of_transformers,
)
from datasets import Dataset
from loop import trained
from sft import TOKENS
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

import pact_plugin as pact
from pact_plugin.errors import ReferenceModelError, StoreError
from pact_plugin.run.receipt import Receipt

FOLDER = "_pact_store"
ONE_EPOCH = {"num_train_epochs": 1, "max_steps": -1}
EPOCHS = {"num_train_epochs": 3, "max_steps": -1}


class EvalPasses(TrainerCallback):
    """Passes of the decoder in evaluation mode, as a reference makes them: by the step they are made in.

    Args:
        trainer: Constrained, so that those before training are counted as of step -1.
    """

    def __init__(self, trainer: Any) -> None:
        self.steps: list[int] = []
        self.now = -1
        trainer.add_callback(self)
        decoder = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
        decoder.model.register_forward_hook(self._note)

    def _note(self, module: Any, args: Any, output: Any) -> None:
        if not module.training:
            self.steps.append(self.now)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now = state.global_step


def changing(trainer: Any) -> Any:
    """The trainer with rows that change once it has taken a step."""
    collator = trainer.data_collator

    def change(rows: Any) -> Any:
        batch = collator(rows)
        if trainer.state.global_step > 0:
            batch["input_ids"][:, 1] = 40
        return batch

    trainer.data_collator = change
    return trainer


# --- which reference ---


@each_trainer
def test_the_reference_of_a_run(tmp_path, build):
    tiny_model(seed=1).save_pretrained(tmp_path / "aligned")
    tiny_tokenizer().save_pretrained(tmp_path / "aligned")

    def chosen(config=HELD, **settings) -> tuple[str, str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        choice = pact.attach(build(folder, **settings), config).pact.reference.choice
        return choice.name, choice.source

    assert chosen() == ("table", "itself")
    assert chosen(with_lora=True, **ONE_EPOCH) == ("table", "adapter_off")
    assert chosen(with_lora=True, **EPOCHS) == ("table", "adapter_off")
    assert chosen(model=trained()) == ("table", "itself")
    assert chosen(changed(HELD, reference=str(tmp_path / "aligned"))) == ("table", "model")
    anchors_alone = changed(CONFIG, easing=False, hold_data=False)
    assert chosen(anchors_alone) == ("start", "itself")
    assert chosen(anchors_alone, streaming=True) == ("start", "itself")
    assert chosen(streaming=True) == ("copy", "copy")
    assert chosen(with_lora=True, streaming=True) == ("adapter_off", "adapter_off")
    assert chosen(model=trained(), streaming=True) == ("copy", "copy")


# --- no step runs a reference ---


@each_kind
@each_trainer
@pytest.mark.parametrize("epochs", [ONE_EPOCH, EPOCHS], ids=["one epoch", "epochs"])
def test_no_step_runs_a_reference(tmp_path, build, with_lora, epochs):
    trainer = build(tmp_path, with_lora=with_lora, **epochs)
    passes = EvalPasses(pact.attach(trainer, HELD))
    trainer.train()
    assert trainer.pact.reference.table.documents == 16
    assert passes.steps == [-1], "sixteen short rows fit into one pass, before the first step"


@each_kind
@each_trainer
def test_nor_does_one_with_anchors(tmp_path, build, with_lora):
    """An adapter that can be switched off is read at the anchors in the first step, in the precision that this has."""
    trainer = build(tmp_path, with_lora=with_lora, **ONE_EPOCH)
    passes = EvalPasses(pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS)))
    trainer.train()
    assert trainer.state.global_step == 4
    assert set(passes.steps) == ({-1, 0} if with_lora else {-1})


# --- data that cannot be read before training ---


@each_kind
@each_trainer
def test_streaming_data_runs_the_reference_in_each_step_and_says_so(tmp_path, caplog, build, with_lora):
    trainer = build(tmp_path, with_lora=with_lora, streaming=True, eval_strategy="no")
    passes = EvalPasses(pact.attach(trainer, HELD))
    trainer.train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]
    assert trainer.pact.record.receipt.reference == ("adapter_off" if with_lora else "copy")
    assert "run in each step, as the training data has no length" in caplog.text
    assert passes.steps == [0, 1, 2]
    assert [one.name for one in (tmp_path / FOLDER).iterdir()] == ["answers"]


@each_trainer
def test_streaming_data_with_sharded_parameters_has_no_reference(tmp_path, build):
    trainer = build(tmp_path, streaming=True, eval_strategy="no")
    kind = type(trainer)
    sharded = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    trainer.args.hf_deepspeed_config = sharded
    with pytest.raises(
        ReferenceModelError, match=r"^deepspeed: .*no length.*sharded.*text data of known length"
    ):
        pact.attach(trainer, HELD)
    assert type(trainer) is kind
    adapter = build(tmp_path, with_lora=True, streaming=True, eval_strategy="no")
    adapter.args.hf_deepspeed_config = sharded
    assert pact.attach(adapter, HELD).pact.reference.choice.name == "adapter_off"
    rows = build(tmp_path)
    rows.args.hf_deepspeed_config = sharded
    assert pact.attach(rows, HELD).pact.reference.choice.name == "table"


@each_trainer
def test_batches_of_more_than_text_run_the_reference_in_each_step(tmp_path, caplog, build):
    trainer = build(tmp_path)
    collator = trainer.data_collator
    trainer.data_collator = lambda rows: collator(rows) | {"pixel_values": torch.ones(len(rows), 3, 2, 2)}
    assert pact.attach(trainer, HELD).pact.reference.choice.name == "copy"
    assert "run in each step, as its batches hold `pixel_values`" in caplog.text


def numbered(rows: int) -> Dataset:
    """So many rows of a prompt of its own each, as of `completions`."""
    answer = [{"role": "assistant", "content": "one two"}]
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"How do I write {row}?"}], "completion": answer}
            for row in range(rows)
        ]
    )


def with_images(trainer: Any, rows: Dataset) -> Any:
    """The trainer, whose batches hold images where they hold some of its rows."""
    collator, seeing = trainer.data_collator, {tuple(row["input_ids"]) for row in rows}

    def collate(examples: Any) -> Any:
        images = any(tuple(example["input_ids"]) in seeing for example in examples)
        return collator(examples) | ({"pixel_values": torch.ones(1, 3, 2, 2)} if images else {})

    trainer.data_collator = collate
    return trainer


@each_trainer
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    "rows",
    [range(5, 200, 2), range(6, 200, 2), range(192, 200), range(100, 108)],
    ids=["odd", "even", "at the end", "in the middle"],
)
def test_rows_after_the_first_may_be_the_ones_that_hold_more(tmp_path, caplog, build, size, rows):
    trainer = build(tmp_path, data=numbered(200), per_device_train_batch_size=size)
    with_images(trainer, trainer.train_dataset.select(rows))
    assert pact.attach(trainer, HELD).pact.reference.choice.name == "copy"
    assert "run in each step, as its batches hold `pixel_values`" in caplog.text


@each_trainer
@pytest.mark.parametrize("empty", [None, []])
def test_one_row_of_many_that_holds_more_is_found_by_its_column(tmp_path, caplog, build, empty):
    trainer = build(tmp_path, data=numbered(200), per_device_train_batch_size=4)
    rows = trainer.train_dataset
    images = [["one.png"] if row == 148 else empty for row in range(len(rows))]
    trainer.train_dataset = rows.add_column("images", images).select(range(len(rows) - 1, 0, -1))
    with_images(trainer, rows.select([148]))
    assert pact.attach(trainer, HELD).pact.reference.choice.name == "copy"
    assert "run in each step, as its batches hold `pixel_values`" in caplog.text
    none = build(tmp_path / "none", data=numbered(200))
    none.train_dataset = none.train_dataset.add_column("images", [empty] * 200)
    assert pact.attach(none, HELD).pact.reference.choice.name == "table"


@each_trainer
@pytest.mark.parametrize("size", [1, 4])
def test_some_rows_of_many_are_looked_at_no_more_at_a_time_than_in_a_step(tmp_path, build, size):
    trainer = build(tmp_path, data=numbered(200), per_device_train_batch_size=size)
    recording = Recording(trainer)
    assert pact.attach(trainer, HELD).pact.reference.choice.name == "table"
    lengths = [len(batch["input_ids"]) for batch in recording.batches]
    assert set(lengths) == {size}
    assert sum(lengths) == 16 + 64


@each_trainer
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_more_than_text_that_filling_meets_stops_with_what_its_user_can_do(tmp_path, build, name):
    trainer = build(tmp_path)
    rows = trainer.train_dataset
    parts = {"train_dataset": rows.select(range(8)), "eval_dataset": rows.select(range(8, 16))}
    trainer.train_dataset, trainer.eval_dataset = parts.values()
    with_images(pact.attach(trainer, HELD), parts[name].select([3]))
    with pytest.raises(
        StoreError, match=rf"^{name}: its batches hold `pixel_values`.*one first in `train_d"
    ) as met:
        trainer.train()
    assert "`fill`" not in str(met.value)
    assert trainer.state.global_step == 0


@each_trainer
def test_rows_that_change_from_epoch_to_epoch_stop_full_fine_tuning(tmp_path, build):
    trainer = changing(pact.attach(build(tmp_path, **EPOCHS), HELD))
    with pytest.raises(StoreError, match=r"document 0 of the batch is not in the table"):
        trainer.train()


@each_trainer
def test_an_adapter_that_can_be_switched_off_computes_what_the_table_lacks(tmp_path, caplog, build):
    trainer = changing(pact.attach(build(tmp_path, with_lora=True, **EPOCHS), HELD))
    trainer.train()
    assert "some documents are not in the table; each step computes them" in caplog.text
    assert trainer.pact.record.receipt.steps == [[1, 12]]


# --- where it lies, and what is in it ---


@each_trainer
def test_the_table_lies_in_the_output_and_is_used_again(tmp_path, caplog, build):
    def run(seed: int) -> Any:
        trainer = pact.attach(build(tmp_path, with_lora=True, seed=seed), HELD)
        passes = EvalPasses(trainer)
        trainer.train()
        return trainer, passes.steps

    with caplog.at_level("INFO", logger="pact_plugin"):
        first, passes = run(0)
    assert passes == [-1]
    assert "16 documents" in caplog.text
    again, passes = run(1)  # another seed: the same aligned model
    assert passes == []
    assert again.pact.record.receipt.table == first.pact.record.receipt.table == Receipt.read(tmp_path).table
    assert sorted(path.suffix for path in (tmp_path / FOLDER).iterdir()) == ["", ".json", ".shard"]


@each_trainer
def test_a_table_in_another_place(tmp_path, build):
    place = tmp_path / "shared" / "store"
    trainer = pact.attach(build(tmp_path / "run"), changed(HELD, advanced={"store": str(place)}))
    trainer.train()
    assert list(place.glob("*.shard"))
    assert not (tmp_path / "run" / FOLDER).exists()


@each_trainer
def test_evaluation_data_is_read_too_and_other_data_is_left_out(tmp_path, caplog, build):
    trainer = build(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.eval_dataset = trainer.eval_dataset.select(range(8))
    other = trainer.train_dataset.select(range(4)).map(
        lambda row: {"input_ids": [*row["input_ids"][:-1], 40], "labels": [*row["labels"][:-1], 40]}
    )
    pact.attach(trainer, HELD).train()
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert all(log["eval_pact/divergence"] > 1e-6 for log in evaluations)
    left_out = trainer.evaluate(other)
    assert left_out["eval_loss"] > 0
    assert not any("pact" in name for name in left_out)
    assert "left out of this evaluation" in caplog.text
    assert trainer.evaluate()["eval_pact/divergence"] > 0


def test_evaluation_data_without_labels_is_left_out(tmp_path):
    trainer = of_transformers(tmp_path)
    rows = trainer.eval_dataset
    trainer.train_dataset = rows.select(range(8))
    trainer.eval_dataset = {"bare": rows.remove_columns("labels"), "whole": rows.select(range(8, 12))}
    pact.attach(trainer, HELD).train()
    assert trainer.pact.reference.table.documents == 12


@each_trainer
def test_several_evaluation_data_sets_and_loading_processes(tmp_path, build):
    trainer = build(tmp_path, eval_strategy="steps", eval_steps=2, dataloader_num_workers=2)
    rows = trainer.eval_dataset
    trainer.train_dataset = rows.select(range(8))
    trainer.eval_dataset = {"one": rows.select(range(8, 12)), "two": rows.select(range(12, 16))}
    pact.attach(trainer, HELD).train()
    logs = [log for log in trainer.state.log_history if any("eval" in name for name in log)]
    found = {name for log in logs for name in log if "pact/divergence" in name}
    assert found == {"eval_one_pact/divergence", "eval_two_pact/divergence"}
    assert trainer.pact.reference.table.documents == 16
