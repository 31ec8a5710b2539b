"""Axolotl's own trainer classes, without its command: which have an adapter, and which are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hf import hf_trainer
from preferences import (
    CONFIG,
    FIVE_STEPS,
    assert_equal_to_a_plain_loop,
    dpo_loss,
    dpo_trainer,
    lora_of_dpo,
)
from sft import TOKENIZER, TOKENS
from tiny import tiny_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
)

import pact_plugin as pact
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.manager import find_adapter
from pact_plugin.model.fingerprint import model_fingerprint


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


def reward_trainer(output: Path) -> Any:
    """One of Axolotl's trainers whose loss is no language model's."""
    from axolotl.core.trainers import AxolotlRewardTrainer
    from axolotl.core.training_args import AxolotlRewardConfig

    settings = tiny_model().config.to_dict() | {"num_labels": 1}
    return AxolotlRewardTrainer(
        model=AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**settings)),
        args=AxolotlRewardConfig(output_dir=str(output), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=Dataset.from_list([{"chosen": "I can't", "rejected": "Sure, here is"}] * 4),
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
    other = reward_trainer(tmp_path)
    kind = type(other)
    assert find_adapter(other).name == "axolotl"
    with pytest.raises(AdapterError, match=rf"{kind.__name__}.*neither a next-token.*pact: false"):
        pact.attach(other, EASED)
    assert type(other) is kind


@pytest.mark.parametrize("peft", [None, lora_of_dpo()], ids=["full", "lora"])
def test_five_steps_of_its_dpo_trainer_equal_a_plain_loop(tmp_path, peft):
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    classes = {"trainer_class": AxolotlDPOTrainer, "config_class": AxolotlDPOConfig}
    trainer = dpo_trainer(tmp_path, peft=peft, **classes, **FIVE_STEPS)
    assert find_adapter(trainer).name == "axolotl"
    pact.attach(trainer, CONFIG)
    assert_equal_to_a_plain_loop(trainer, partial(dpo_loss, reference=tiny_model()))


def test_trainers_of_another_loss_than_the_next_tokens_are_refused_even_with_easing_off(tmp_path):
    from axolotl.integrations.diffusion.trainer import DiffusionTrainer

    trainer = sft_trainer(tmp_path, DiffusionTrainer)
    with pytest.raises(AdapterError, match=r"DiffusionTrainer.*neither a next-token.*pact: false"):
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


@pytest.mark.parametrize("weight_dtype", ["int4", "ternary"])
def test_a_model_that_rounds_in_its_forward_pass_is_another(weight_dtype):
    """`qat`: the weights are the same, but not what the model answers; its answers are not those that were kept."""
    from axolotl.utils.callbacks.qat import toggle_fake_quant
    from axolotl.utils.quantization import prepare_model_for_qat
    from axolotl.utils.schemas.quantization import QATConfig

    plain, model = tiny_model(), tiny_model()
    qat = QATConfig(weight_dtype=weight_dtype, activation_dtype="int8", group_size=16)
    prepare_model_for_qat(model, qat.weight_dtype, qat.group_size, qat.activation_dtype)
    ids = torch.arange(8)[None]
    assert not torch.equal(plain(ids).logits, model(ids).logits)
    known = model_fingerprint(plain, any_type=True)
    assert model_fingerprint(model, any_type=True).values != known.values
    model.apply(partial(toggle_fake_quant, enable=False))
    off = torch.equal(plain(ids).logits, model(ids).logits)  # torchao's int4 weights cannot be switched off
    assert off == (weight_dtype == "ternary")
    assert (model_fingerprint(model, any_type=True) == known) == off
