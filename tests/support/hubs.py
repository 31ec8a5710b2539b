"""Where the hub is out of reach."""

from __future__ import annotations

import pytest


def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cached, and the hub does not answer."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
