"""Runs of the real `swift` command on a tiny model, for the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from command_runs import Bench, Run

HERE = Path(__file__).parent
DUMP, PACKED = str(HERE / "swift_dump.py"), str(HERE / "swift_packed.py")
LORA: dict[str, Any] = {"tuner_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}
FULL: dict[str, Any] = {"tuner_type": "full"}


class Workshop(Bench):
    """A folder with a tiny aligned model, data, safety tokens and plugins, in which configurations are run."""

    def plugin(self, name: str = "pact", **settings: Any) -> str:
        """A file that registers PACT with the workshop's tokens and some settings."""
        named = self.named_tokens | settings
        file = self.folder / "plugins" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"import pact_swift\n\npact_swift.register({named!r})\n")
        return str(file)

    def config(self, **changes: Any) -> dict[str, Any]:
        """A configuration that trains on the CPU; a key set to None is left out."""
        base: dict[str, Any] = {
            "model": str(self.folder / "model"),
            "model_type": "llama",
            "template": "chatml",
            "external_plugins": [self.plugin()],
            "dataset": [str(self.folder / "chat.jsonl")],
            "max_length": 256,
            "add_version": False,
            "torch_dtype": "float32",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "optim": "adamw_torch",
            "dataloader_num_workers": 0,
            "report_to": "none",
            "use_hf": True,
            "check_model": False,
        }
        return {key: value for key, value in (base | changes).items() if value is not None}

    def written(self, name: str, **changes: Any) -> Path:
        """A configuration file."""
        file = self.folder / f"{name}.yaml"
        output = {"output_dir": str(self.folder / name)}
        file.write_text(yaml.safe_dump(output | self.config(**changes)))
        return file

    def train(
        self, name: str, *, command: str = "sft", dump: bool = False, ranks: int = 1, **changes: Any
    ) -> Run:
        """`swift sft` into the folder `name`; several ranks through its own launcher."""
        if dump:
            plugins = changes.get("external_plugins", [self.plugin()])
            changes |= {"external_plugins": [*plugins, DUMP], "callbacks": ["dump"]}
        launched = {"NPROC_PER_NODE": str(ranks)} if ranks > 1 else {}
        return self.swift(command, self.written(name, **changes), self.folder / name, **launched)

    def swift(self, command: str, file: Path, output: Path, **environment: str) -> Run:
        """A command of ms-swift on a configuration."""
        words = [str(Path(sys.executable).parent / "swift"), command, str(file)]
        return self.command(words, output, MODELSCOPE_CACHE=str(self.folder / "cache"), **environment)
