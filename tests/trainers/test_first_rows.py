"""A trainer's first rows may be unlike the others: in where answers begin, in what is masked, in having an answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from both import CONFIG, FEW_ANCHORS
from datasets import Dataset
from hf import hf_trainer, tokenized
from sft import ON_A_CPU, TOKENS, conversations, lora, weights
from tiny import tiny_model, tiny_tokenizer
from trl import SFTConfig, SFTTrainer

import pact_plugin as pact

EASING = pact.PactConfig(safety_tokens=TOKENS, anchors=FEW_ANCHORS)
QWEN = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
"""With it TRL counts the line break behind `assistant` as part of an answer."""
PLAIN = {"input_ids": [5, 40, 41, 42, 43]}
ODD = {
    "nothing masked": PLAIN | {"labels": PLAIN["input_ids"]},
    "all masked": PLAIN | {"labels": [-100] * 5},
}


def of_qwen(output: Path, *, streaming: bool) -> SFTTrainer:
    data = conversations()
    return SFTTrainer(
        tiny_model(),
        args=SFTConfig(
            **(ON_A_CPU | {"output_dir": str(output), "assistant_only_loss": True, "max_length": 512})
        ),
        train_dataset=data.to_iterable_dataset() if streaming else data,
        processing_class=tiny_tokenizer(chat_template=QWEN),
        peft_config=lora(),
    )


def endings(trainer: Any) -> tuple[tuple[int, ...], ...]:
    (term,) = [one for one in trainer.pact.terms if one.name == "easing"]
    return tuple(term._endings)


@pytest.mark.parametrize("streaming", [False, True])
def test_easing_is_fitted_where_the_datas_answers_begin(tmp_path, caplog, streaming):
    trainer = of_qwen(tmp_path, streaming=streaming)
    pact.attach(trainer, EASING)
    assert len(endings(trainer)) == 2
    trainer.train()
    assert "answers in the data begin behind" not in caplog.text


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_first_row_changes_neither_endings_nor_the_receipt(tmp_path, odd):
    of_trl = of_qwen(tmp_path, streaming=False)
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in of_trl.train_dataset]
    trainer = hf_trainer(
        tmp_path, data=Dataset.from_list([odd, *rows]), per_device_train_batch_size=1, max_steps=1
    )
    trainer.processing_class = of_trl.processing_class
    pact.attach(trainer, EASING)
    assert len(endings(trainer)) == 2
    assert not trainer.pact.record.receipt.unmasked


def test_a_run_may_begin_with_rows_whose_answers_are_truncated_away(tmp_path, caplog):
    rows = [ODD["all masked"]] * 3 + [
        {name: row[name] for name in PLAIN | {"labels": 0}} for row in tokenized(5)
    ]
    settings = {"per_device_train_batch_size": 1, "max_steps": 8, "train_sampling_strategy": "sequential"}
    trainer = pact.attach(hf_trainer(tmp_path, data=Dataset.from_list(rows), **settings), CONFIG)
    trainer.train()
    assert "have shown no response position" in caplog.text
    assert trainer.pact.record.receipt.constrained_steps == 8
    assert "pact/eased" in trainer.state.log_history[-2]


class RandomRows(torch.utils.data.Dataset):
    """Rows that are cut at random when they are read."""

    def __init__(self) -> None:
        self._rows = tokenized()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        cut = int(torch.randint(3, (1,))) + random.randrange(3) + int(np.random.randint(3))
        row = self._rows[number]
        return {name: row[name][: len(row["input_ids"]) - cut] for name in ("input_ids", "labels")}


def test_data_that_draws_random_numbers_draws_the_same_ones_with_pact(tmp_path):
    def trained(constrained: bool) -> dict[str, torch.Tensor]:
        trainer = hf_trainer(tmp_path, model=tiny_model("gpt2"), data=RandomRows())
        if constrained:
            pact.attach(trainer, {"safety_tokens": TOKENS, "weight": 0})
        trainer.train()
        return weights(trainer)

    plain, measured = trained(False), trained(True)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


def test_endings_do_not_depend_on_the_batch_size(tmp_path):
    """A run that is resumed with smaller batches must find its table."""
    of_trl = of_qwen(tmp_path / "trl", streaming=False)
    row = {name: of_trl.train_dataset[0][name] for name in ("input_ids", "labels")}
    first = next(i for i, label in enumerate(row["labels"]) if label != -100)
    row = {name: ids[: first + 3] for name, ids in row.items()}  # one answer
    later = row | {"labels": [-100] * (first + 1) + row["labels"][first + 1 :]}
    data = Dataset.from_list([row if i == 6 else later for i in range(600)])
    found = []
    for size in (8, 4):
        trainer = hf_trainer(tmp_path / str(size), data=data, per_device_train_batch_size=size, max_steps=1)
        trainer.processing_class = of_trl.processing_class
        found.append(endings(pact.attach(trainer, EASING)))
    assert found[0] == found[1]
    assert len(found[0]) == 2
