"""Whether a run goes on with the adapter that its checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pact_plugin.errors import AdapterError

_MAY_DIFFER = {"base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode"}
"""Where the adapter was, which says nothing of its weights."""
_ARGUMENTS = {"r": "lora_rank", "bias": "lora_bias", "init_lora_weights": "init_weights"}
"""What ms-swift calls LoRA's settings, where PEFT has other names."""


def require_same_adapter(model: Any, checkpoint: Path | None) -> None:
    """Refuse an adapter of other settings than those of the checkpoint.

    Without PACT ms-swift makes the adapter by the checkpoint's settings. Here it begins as the run did, and the Trainer
    loads its weights alone: with another `lora_alpha` they would be another model's.

    Args:
        model: The model to be trained, with an adapter or without.
        checkpoint: What the run goes on from, if from anything.

    Raises:
        AdapterError: Names the first setting that differs.
    """
    file = (checkpoint or Path()) / "adapter_config.json"
    own = getattr(model, "peft_config", {}).get("default")
    if not checkpoint or own is None or not file.is_file():
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    for name, value in own.to_dict().items():
        if name in stored and name not in _MAY_DIFFER and _plain(value) != _plain(stored[name]):
            key = _ARGUMENTS.get(name, name) if "LORA" in stored["peft_type"] else name
            raise AdapterError(
                f"the adapter in the checkpoint has {_plain(stored[name])!r}, so its weights would mean another model",
                key=key,
                value=_plain(value),
                remedy="Give the adapter's settings of the run that is resumed again.",
            )


def _plain(value: Any) -> Any:
    """Names in any order, and no names at all as nothing."""
    return (sorted(value) or None) if isinstance(value, list | set | tuple) else value
