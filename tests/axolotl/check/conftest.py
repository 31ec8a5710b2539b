"""Where the tests of `check` run: a folder of models and tokens, and no Axolotl on the path."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import pact_plugin as pact


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A model, a model of another tokenizer, an adapter's folder, and token files."""
    folder = tmp_path_factory.mktemp("check")
    tokenizer = tiny_tokenizer()
    tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pact.SafetyTokens.for_tokenizer(tokenizer, [40, 41, 75], [1.0, 0.5, -0.2]).save(folder / "t.safetensors")
    other = Tokenizer(models.WordLevel({"one": 0, "two": 1, "[UNK]": 2}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=other)
    words.save_pretrained(folder / "other")
    tiny_model().config.save_pretrained(folder / "other")
    pact.SafetyTokens.for_tokenizer(words, [0, 1], [1.0, 0.5]).save(folder / "other.safetensors")
    (folder / "adapter").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _no_axolotl_on_path(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(folder)  # so that the configurations can name files
