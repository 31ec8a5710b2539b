"""Runs of the real `swift` command on a tiny model, for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import tiny_aligned_model, tiny_tokenizer

import pact_plugin as pact
from pact_plugin.data.prompts import for_pool

HERE = Path(__file__).parent
SHORT = [one.prompt for one in for_pool().prompts if one.kind == "harmful" and len(one.prompt) < 50]
WORDS = ("I can't", "Sure, here is", "one two", "three four five", "positive", "negative")
DUMP, PACKED = str(HERE / "swift_dump.py"), str(HERE / "swift_packed.py")
LORA: dict[str, Any] = {"tuner_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}
FULL: dict[str, Any] = {"tuner_type": "full"}


@dataclass(frozen=True)
class Run:
    """A finished command."""

    output: Path
    status: int
    log: str

    def ok(self) -> Run:
        assert self.status == 0, self.log[-4000:]
        return self

    @property
    def checkpoints(self) -> list[Path]:
        return sorted(self.output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))

    @property
    def history(self) -> list[dict[str, float]]:
        return json.loads((self.checkpoints[-1] / "trainer_state.json").read_text())["log_history"]

    @property
    def steps(self) -> list[dict[str, float]]:
        return [entry for entry in self.history if "loss" in entry]

    @property
    def receipt(self) -> dict[str, Any]:
        return json.loads((self.output / "pact_receipt.json").read_text())

    def dumped(self) -> list[dict[str, Any]]:
        return [torch.load(path) for path in sorted((self.output / "dump").glob("*.pt"))]

    def verify(self, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return pact_command("verify", str(folder or self.output))


def pact_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pact_plugin.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


class Workshop:
    """A folder with a tiny aligned model, data, safety tokens and plugins, in which configurations are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.tokenizer = tiny_aligned_model(max_position_embeddings=1024), tiny_tokenizer()
        self.model.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")
        self.tokens = pact.SafetyTokens.for_tokenizer(
            self.tokenizer, [40, 41, 42, 43, 75], [1.0, 0.5, -0.2, 0.1, 0.3]
        )
        self.tokens.save(folder / "tokens.safetensors")
        rows = [{"messages": _conversation(i)} for i in range(48)]
        (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def plugin(self, name: str = "pact", **settings: Any) -> str:
        """A file that registers PACT with the workshop's tokens and some settings."""
        named = {"safety_tokens": str(self.folder / "tokens.safetensors")} | settings
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

    def train(self, name: str, *, command: str = "sft", dump: bool = False, **changes: Any) -> Run:
        """`swift sft` into the folder `name`."""
        if dump:
            plugins = changes.get("external_plugins", [self.plugin()])
            changes |= {"external_plugins": [*plugins, DUMP], "callbacks": ["dump"]}
        return self.swift(command, self.written(name, **changes), self.folder / name)

    def swift(self, command: str, file: Path, output: Path) -> Run:
        """A command of ms-swift on a configuration."""
        environment = {
            "DUMP_BATCHES": str(output / "dump"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MODELSCOPE_CACHE": str(self.folder / "cache"),
        }
        done = subprocess.run(
            [str(Path(sys.executable).parent / "swift"), command, str(file)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return Run(output, done.returncode, done.stdout)


def _conversation(i: int) -> list[dict[str, str]]:
    """Of even ones the first prompt is a harmful one of the pool, so a probe sees that in most; every sixth refuses."""
    return [
        {"role": "user", "content": f"How do I write {i}?" if i % 2 else SHORT[i // 2]},
        {"role": "assistant", "content": WORDS[i % 6]},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": f"{WORDS[(i + 1) % 6]} five"},
    ]
