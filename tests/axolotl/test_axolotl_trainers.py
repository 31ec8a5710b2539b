"""Axolotl's own trainer classes, without its command: which have an adapter, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hf import hf_trainer
from sft import TOKENIZER, TOKENS
from tiny import tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
)

import pact_plugin as pact
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.manager import find_adapter


def sft_trainer(output: Path, trainer_class: type | None = None):
    from axolotl.core.trainers import AxolotlTrainer
    from axolotl.core.training_args import AxolotlTrainingArguments

    return hf_trainer(
        output,
        trainer_class=trainer_class or AxolotlTrainer,
        arguments_class=AxolotlTrainingArguments,
        trainer_settings={"eval_data_collator": DataCollatorForSeq2Seq(TOKENIZER)},
        include_tkps=False,
    )


def preference_trainers(output: Path) -> Iterator[Any]:
    """Two of Axolotl's trainers whose loss compares answers."""
    from axolotl.core.trainers import AxolotlRewardTrainer
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
    from axolotl.core.training_args import AxolotlRewardConfig

    rows = [{"prompt": "How?", "chosen": "I can't", "rejected": "Sure, here is"}] * 4
    tiny_model().save_pretrained(output / "model")  # DPO's own reference is loaded by the model's name
    plain = {"output_dir": str(output), "use_cpu": True, "bf16": False, "report_to": []}
    yield AxolotlDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(output / "model"),
        args=AxolotlDPOConfig(**plain),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    settings = tiny_model().config.to_dict() | {"num_labels": 1}
    yield AxolotlRewardTrainer(
        model=AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**settings)),
        args=AxolotlRewardConfig(**plain),
        train_dataset=Dataset.from_list([{"chosen": r["chosen"], "rejected": r["rejected"]} for r in rows]),
        processing_class=TOKENIZER,
    )


EASED = pact.PactConfig(safety_tokens=TOKENS)
UNEASED = pact.PactConfig(safety_tokens=TOKENS, easing=False)


def test_axolotls_trainer_has_the_adapter_and_others_than_sft_are_refused(tmp_path):
    trainer = sft_trainer(tmp_path)
    assert find_adapter(trainer).name == "axolotl"
    assert pact.attach(trainer, EASED) is trainer
    trainer.train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]
    for other in preference_trainers(tmp_path):
        kind = type(other)
        assert find_adapter(other).name == "axolotl"
        with pytest.raises(AdapterError, match=rf"{kind.__name__}.*not a next-token.*pact: false"):
            pact.attach(other, EASED)
        assert type(other) is kind


def test_trainers_of_another_loss_than_the_next_tokens_are_refused_even_with_easing_off(tmp_path):
    from axolotl.integrations.diffusion.trainer import DiffusionTrainer

    trainer = sft_trainer(tmp_path, DiffusionTrainer)
    with pytest.raises(AdapterError, match=r"DiffusionTrainer.*not a next-token.*pact: false"):
        pact.attach(trainer, UNEASED)
    assert type(trainer) is DiffusionTrainer


def test_a_trainer_with_a_loss_of_its_own_needs_easing_off(tmp_path):
    from axolotl.core.trainers import AxolotlTrainer

    class Own(AxolotlTrainer):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    trainer = sft_trainer(tmp_path, Own)
    with pytest.raises(AdapterError, match=r"Own.*easing: false"):
        pact.attach(trainer, EASED)
    assert type(trainer) is Own
    pact.attach(trainer, UNEASED).train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]


def test_a_compute_loss_replaced_on_the_trainer_is_refused(tmp_path):
    trainer = sft_trainer(tmp_path)
    trainer.compute_loss = lambda *args, **kwargs: None
    with pytest.raises(AdapterError, match="never be called"):
        pact.attach(trainer, EASED)
