"""Runs of `pact-plugin train` on a tiny model, for the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from command_runs import Bench, Run

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
LORA: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_target": "all"}
FULL: dict[str, Any] = {"finetuning_type": "full"}


class Workshop(Bench):
    """A folder with a tiny aligned model, data and safety tokens, in which configurations are run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        chat = {"file_name": "chat.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}}
        (folder / "dataset_info.json").write_text(json.dumps({"chat": {**chat, "tags": tags}}))

    def config(self, **changes: Any) -> dict[str, Any]:
        """A configuration that trains on the CPU; a key set to None is left out."""
        base: dict[str, Any] = {
            "model_name_or_path": str(self.folder / "model"),
            "stage": "sft",
            "do_train": True,
            "pact": self.named_tokens,
            "dataset": "chat",
            "dataset_dir": str(self.folder),
            "template": "chatml",
            "cutoff_len": 256,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch",
            "report_to": "none",
        }
        return {key: value for key, value in (base | changes).items() if value is not None}

    def written(self, name: str, **changes: Any) -> Path:
        """A configuration file."""
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"output_dir": str(self.folder / name)} | self.config(**changes)))
        return file

    def train(self, name: str, *, dump: bool = False, torchrun: bool = False, **changes: Any) -> Run:
        """`pact-plugin train` into the folder `name`."""
        file = self.written(name, **changes)
        words = [str(BIN / "pact-plugin"), "train", str(file)]
        if dump:
            words = [sys.executable, str(HERE / "llamafactory_dump.py"), str(file)]
        environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"} if torchrun else {}
        return self.command(words, self.folder / name, PATH=f"{BIN}:/usr/bin:/bin", **environment)

    def plain(self, name: str, **changes: Any) -> Run:
        """`llamafactory-cli train` into the folder `name`, without PACT unless `pact` is given."""
        file = self.written(name, **({"pact": None} | changes))
        return self.command([str(BIN / "llamafactory-cli"), "train", str(file)], self.folder / name)
