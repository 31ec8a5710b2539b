"""What concerns `transformers.Trainer` alone; what it shares with TRL's is in the other files."""

from __future__ import annotations

import pytest
from both import CONFIG
from hf import TOKENIZER, hf_trainer
from transformers import BartConfig, BartForConditionalGeneration, Trainer

import pact_plugin as pact
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.manager import find_adapter


def test_an_encoder_decoder_model(tmp_path):
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=len(TOKENIZER), d_model=16, **sizes, **ids)
    with pytest.raises(AdapterError, match=r"BartForConditionalGeneration.*causal language model"):
        pact.attach(hf_trainer(tmp_path, model=BartForConditionalGeneration(config)), CONFIG)


def test_a_subclass_of_the_users_own_is_a_trainer_too(tmp_path):
    class Named(Trainer):
        """Without a loss of its own."""

    trainer = hf_trainer(tmp_path, trainer_class=Named)
    assert find_adapter(trainer).name == "transformers"
    pact.attach(trainer, CONFIG).train()
    assert isinstance(trainer, Named)
    assert trainer.pact.record.receipt.steps == [[1, 3]]
