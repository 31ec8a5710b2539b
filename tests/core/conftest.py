"""A pool of few prompts, in a folder of its own, for the tests that ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pools import PROMPTS, ask_about
from transformers import GenerationMixin

from pact_plugin.reference.cache import CACHE


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """An empty folder of kept answers; a pool of 40 prompts."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    ask_about(monkeypatch, PROMPTS)
    return tmp_path / "cache"


@pytest.fixture
def generated(monkeypatch) -> list[Any]:
    """The models that generate, once for each batch of prompts."""
    seen, generate = [], GenerationMixin.generate

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        seen.append(self)
        return generate(self, *given, **named)

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    return seen
