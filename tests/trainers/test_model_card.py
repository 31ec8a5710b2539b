"""The model card that trainers write: a block on PACT in it, once, and as the receipt says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audits import audit, results
from both import CONFIG, of_transformers, of_trl
from huggingface_hub import ModelCard
from preferences import CONFIG as ANCHORS
from preferences import dpo_trainer
from sft import TOKENIZER
from tiny import QUESTIONS, REQUESTS, tiny_model

import pact_plugin as pact
from pact_plugin.audit.card import BEGIN, END, block
from pact_plugin.run.receipt import Receipt

EITHER = pytest.mark.parametrize("of", [of_transformers, of_trl], ids=["transformers", "TRL"])


def the_block(folder: Path) -> str:
    """Of the card in a folder, which has one."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert ModelCard.load(folder / "README.md").data.to_dict()
    return BEGIN + text.partition(BEGIN)[2].partition(END)[0] + END + "\n"


@EITHER
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "LoRA"])
def test_the_card_has_one_block(of, with_lora, tmp_path):
    trainer = pact.attach(of(tmp_path, with_lora=with_lora), CONFIG)
    trainer.train()
    trainer.save_model()
    for _ in range(2):
        trainer.create_model_card()
        assert the_block(tmp_path) == block(Receipt.read(tmp_path))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| optimiser steps constrained | 3 of 3 |" in text
    assert text.index("## ") < text.index(BEGIN)  # the trainer's own text is there


def test_cards_of_checkpoints_are_renewed_at_the_end(tmp_path):
    """TRL writes the card before it saves a checkpoint, and not at the end of the run."""
    trainer = pact.attach(of_trl(tmp_path, save_strategy="steps", save_steps=2), CONFIG)
    trainer.train()
    assert the_block(tmp_path) == block(Receipt.read(tmp_path))
    assert "| optimiser steps constrained | 3 of 3 |" in the_block(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("audit.json", b'{"mine": 1}'), ("README.md", "Modèle".encode("latin-1"))]
)
def test_a_file_that_cannot_be_read_costs_no_weights(tmp_path, caplog, name, content):
    trainer = pact.attach(of_transformers(tmp_path), CONFIG)
    (tmp_path / name).write_bytes(content)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "model.safetensors").is_file()
    assert Receipt.read(tmp_path).constrained_steps == 3
    assert (tmp_path / name).read_bytes() == content
    assert "the model card is left as it is" in caplog.text


def test_preferences(tmp_path):
    trainer = pact.attach(dpo_trainer(tmp_path), ANCHORS)
    trainer.train()
    trainer.create_model_card()
    assert "| terms | anchors |" in the_block(tmp_path)


@EITHER
def test_an_audit_beside_is_quoted_if_it_is_of_this_model(of, tmp_path):
    folder, output = tmp_path / "models", tmp_path / "out"
    tiny_model().save_pretrained(folder / "aligned")
    TOKENIZER.save_pretrained(folder / "aligned")
    rows = [{"prompt": text, "kind": "harmful"} for text in REQUESTS[:3]]
    rows += [{"prompt": text, "kind": "benign"} for text in QUESTIONS[:3]]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trainer = pact.attach(of(output), CONFIG)
    audit(folder, output, candidate="aligned")  # of a model before
    stale = json.loads((output / "audit.json").read_text(encoding="utf-8")) | {
        "created": "2020-01-01T00:00:00+00:00"
    }
    (output / "audit.json").write_text(json.dumps(stale), encoding="utf-8")
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert "Audit of" not in the_block(output)
    audit(folder, output, candidate=str(output))
    trainer.create_model_card()
    assert the_block(output) == block(Receipt.read(output), results(output))
    assert "Audit of" in the_block(output)
