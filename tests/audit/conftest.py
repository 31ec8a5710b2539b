"""Models for all tests of audits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from audits import adapted, audit
from peft import PromptTuningConfig, get_peft_model
from tiny import HELP, QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """An aligned model, one that has forgotten everything, adapters of both kinds, prompts and a task."""
    folder = tmp_path_factory.mktemp("models")

    def save(name: str, model: Any, tokenizer: Any = None) -> None:
        model.save_pretrained(folder / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)

    tokenizer = tiny_tokenizer()
    save("aligned", tiny_aligned_model(), tokenizer)
    save("other", tiny_model(seed=1), tokenizer)
    save("adapter", adapted(tiny_aligned_model()))
    save("merged", adapted(tiny_aligned_model()).merge_and_unload(), tokenizer)
    save("deeper", adapted(tiny_model(num_hidden_layers=3)))
    save("shallower", adapted(tiny_model(num_hidden_layers=1)))
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    save("virtual", get_peft_model(tiny_model(), virtual))
    rows = [{"prompt": text, "kind": "harmful", "category": text.split()[1]} for text in REQUESTS]
    rows += [{"prompt": text, "kind": "benign"} for text in QUESTIONS]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    items = [{"prompt": text, "answer": HELP} for text in QUESTIONS]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def lost(folder, tmp_path_factory):
    """The report on a candidate that refuses nothing any more, and what the command printed."""
    output = tmp_path_factory.mktemp("lost")
    return output, audit(folder, output)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty charts: drawing takes two thirds of an audit of tiny models. `lost` has them."""

    def empty(chart: Any, target: Path | io.StringIO, **settings: Any) -> None:
        (target.write if isinstance(target, io.StringIO) else target.write_text)("<svg></svg>")

    monkeypatch.setattr("pact_plugin.audit.charts._save", empty)
