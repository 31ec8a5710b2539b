"""Asking tiny models a pool of few prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loop import TOKENIZER, settings
from tiny import QUESTIONS, REQUESTS

from pact_plugin import PactConstraint, assemble
from pact_plugin.data.prompts import Prompt, PromptSet, for_pool
from pact_plugin.reference import pool_file
from pact_plugin.reference.pool import Pool
from pact_plugin.reference.source import build_source

PROMPTS = for_pool().limited(20).prompts
TAUGHT = tuple(
    Prompt(text, kind) for kind, texts in (("harmful", REQUESTS), ("benign", QUESTIONS)) for text in texts
)
"""What `tiny_aligned_model()` answers as it should."""
BARE: dict[str, Any] = {"easing": False, "hold_data": True}
"""Settings that need no answers, where the tokens are named."""


def ask_about(monkeypatch: Any, prompts: Any) -> None:
    """Let the bundled pool be these prompts."""
    monkeypatch.setattr(assemble, "for_pool", lambda: PromptSet(tuple(prompts), "of a test"))


def built(
    model: Any, *, tokenizer: Any = TOKENIZER, reference_model: Any = None, **changes: Any
) -> PactConstraint:
    return PactConstraint(model, tokenizer, settings(**changes), reference_model=reference_model)


def pool_of(model: Any, prompts: Any = PROMPTS, tokenizer: Any = TOKENIZER) -> Pool:
    return pool_file.pool_of(build_source("itself", model), tokenizer, prompts)


def truncated(file: Path) -> None:
    """A file of kept answers, spoilt."""
    file.write_bytes(file.read_bytes()[:-100])
