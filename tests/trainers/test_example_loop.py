"""The loop of `examples/`: chat templates that it cannot label, and settings that are wrong."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from sft import TOKENIZER, completions

from pact_plugin.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"


@pytest.fixture(scope="module")
def example():
    spec = spec_from_file_location("accelerate_loop", EXAMPLE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def chat(tmp_path) -> Path:
    rows = [{"messages": row["prompt"] + row["completion"]} for row in completions(12)]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_template_that_opens_an_answer_otherwise_is_refused(example, chat):
    """As those that open it with `<think>`: the answer's own tokens would be masked, or the prompt's trained on."""

    class Opens:
        def apply_chat_template(self, messages, add_generation_prompt=False, **how):
            ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **how)
            return [*ids, 5] if add_generation_prompt else ids

    rows = example.examples(chat, TOKENIZER)
    assert all(row["labels"][-1] == row["input_ids"][-1] for row in rows)
    with pytest.raises(SystemExit, match="opens an answer otherwise"):
        example.examples(chat, Opens())


def test_wrong_settings_are_named_before_the_model_is_loaded(example, chat, monkeypatch, tmp_path):
    words = ["--model", tmp_path / "none", "--data", chat, "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["loop", *map(str, words), "--pact", '{"wieght": 1}'])
    with pytest.raises(ConfigError, match="wieght"):
        example.main()
    monkeypatch.setattr(sys, "argv", ["loop", *map(str, words), "--pact", "true"])
    with pytest.raises(OSError, match="none"):
        example.main()
