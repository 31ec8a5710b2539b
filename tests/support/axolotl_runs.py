"""Runs of the real `axolotl` command on a tiny model, for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import tiny_aligned_model, tiny_tokenizer

import pact_plugin as pact
from pact_plugin.data.prompts import for_pool

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")  # also where a test calls Axolotl's functions itself

HERE = Path(__file__).parent
SHORT = [one.prompt for one in for_pool().prompts if one.kind == "harmful" and len(one.prompt) < 50]
WORDS = ("I can't", "Sure, here is", "one two", "three four five", "positive", "negative")


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
        """Everything that Axolotl logged, from its last checkpoint."""
        return json.loads((self.checkpoints[-1] / "trainer_state.json").read_text())["log_history"]

    @property
    def steps(self) -> list[dict[str, float]]:
        return [entry for entry in self.history if "loss" in entry]

    @property
    def receipt(self) -> dict[str, Any]:
        return json.loads((self.output / "pact_receipt.json").read_text())

    def verify(self, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pact_plugin.cli.main", "verify", str(folder or self.output)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def dumped(self, rank: int = 0) -> list[dict[str, Any]]:
        return [torch.load(path) for path in sorted((self.output / "dump").glob(f"{rank}-*.pt"))]

    @property
    def reference_passes(self) -> list[int]:
        """The micro-batches, from 1, in which the model was run without training: as the aligned one."""
        path = self.output / "dump" / "0-reference"
        return [int(line) for line in path.read_text().split()] if path.is_file() else []


class Workshop:
    """A folder with a tiny aligned model, data and safety tokens, in which configurations are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.tokenizer = tiny_aligned_model(max_position_embeddings=1024), tiny_tokenizer()
        self.model.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")
        self.tokens = pact.SafetyTokens.for_tokenizer(
            self.tokenizer, [40, 41, 42, 43, 75], [1.0, 0.5, -0.2, 0.1, 0.3]
        )
        self.tokens.save(folder / "tokens.safetensors")
        _write(folder / "chat.jsonl", [{"messages": _conversation(i)} for i in range(48)])
        _write(
            folder / "text.jsonl",
            [{"text": f"{WORDS[i % 6]} {i} and {WORDS[(i + 2) % 6]}"} for i in range(24)],
        )

    @property
    def named_tokens(self) -> dict[str, str]:
        """The setting that names the safety tokens."""
        return {"safety_tokens": str(self.folder / "tokens.safetensors")}

    def config(self, **changes: Any) -> dict[str, Any]:
        """A configuration that trains on the CPU, eased and held at the data; a key set to None is left out."""
        base: dict[str, Any] = {
            "base_model": str(self.folder / "model"),
            "plugins": ["pact_axolotl.PactPlugin"],
            "pact": {**self.named_tokens, "anchors": False, "hold_data": True},
            "datasets": [{"path": str(self.folder / "chat.jsonl"), "type": "chat_template"}],
            "dataset_prepared_path": str(self.folder / "prepared"),
            "sequence_len": 128,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
            "learning_rate": 0.01,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "optimizer": "adamw_torch",
            "bf16": False,
            "tf32": False,
            "attn_implementation": "sdpa",
            "seed": 7,
            "special_tokens": {"pad_token": "<|endoftext|>"},
        }
        return {key: value for key, value in (base | changes).items() if value is not None}

    def train(self, name: str, *arguments: str, dump: bool = False, **changes: Any) -> Run:
        """`axolotl train` into the folder `name`; by default without a launcher, which would take seconds."""
        plugins = ["pact_axolotl.PactPlugin"] + (["dump_batches.DumpPlugin"] if dump else [])
        config = self.config(**({"plugins": plugins} | changes))
        return self.axolotl("train", name, config, *(arguments or ("--launcher", "python")))

    def axolotl(
        self, command: str, name: str, config: dict[str, Any], *arguments: str, **environment: str
    ) -> Run:
        """An `axolotl` command on a configuration."""
        return self.command(["axolotl", command], name, config, *arguments, **environment)

    def pact_train(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None, **changes: Any
    ) -> Run:
        """`pact-plugin train` on a configuration, by default without a launcher."""
        words = [sys.executable, "-m", "pact_plugin.cli.main", "train"]
        given = arguments or ("--launcher", "python")
        return self.command(words, name, self.config(**changes), *given, **(environment or {}))

    def command(
        self, words: list[str], name: str, config: dict[str, Any], *arguments: str, **environment: str
    ) -> Run:
        """Any command on a configuration; `environment` replaces what this process has."""
        output = self.folder / name
        file = self.folder / f"{name}-{words[-1]}.yml"
        file.write_text(yaml.safe_dump(config | {"output_dir": str(output)}))
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        base = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            "DUMP_BATCHES": str(output / "dump"),
            "ACCELERATE_USE_CPU": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [*words, str(file), *arguments],
            env=os.environ | base | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return Run(output, done.returncode, done.stdout)


def loads_installed() -> bool:
    """Whether this Axolotl loads installed plugins without a line, and stops at a listed one that fails to load."""
    return any(point.value.startswith("axolotl.") for point in entry_points(group="axolotl.plugins"))


def environment_without_plugin(folder: Path) -> Path:
    """Where the command `axolotl` is of an environment that has Axolotl, but not pact-plugin."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run(
        [folder / "bin/python", "-c", asked], capture_output=True, text=True, check=True
    )
    # A .pth file lets Axolotl in, but not what its environment has through .pth files itself: pact-plugin.
    (Path(packages.stdout.strip()) / "axolotl.pth").write_text(sysconfig.get_path("purelib"))
    here, command = Path(sys.executable).parent, folder / "bin/axolotl"
    command.write_text((here / "axolotl").read_text().replace(str(here), str(command.parent)))
    command.chmod(0o755)
    return command.parent


LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
}


def _conversation(i: int) -> list[dict[str, str]]:
    """Of even ones the first prompt is a harmful one of the pool, so a probe sees that in most; every sixth refuses."""
    return [
        {"role": "user", "content": f"How do I write {i}?" if i % 2 else SHORT[i // 2]},
        {"role": "assistant", "content": WORDS[i % 6]},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": f"{WORDS[(i + 1) % 6]} five"},
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
