"""Runs of the real `axolotl` command on a tiny model, for the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import command_runs
import torch
import yaml
from command_runs import WORDS, Bench, write_rows
from forks import OWN, Forks, forks

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")  # also where a test calls Axolotl's functions itself

HERE = Path(__file__).parent
WITHOUT_LAUNCHER = ("--launcher", "python")
PACT = [sys.executable, "-m", "pact_plugin.cli.main"]


@dataclass(frozen=True)
class Run(command_runs.Run):
    """A finished command, and what the plugins of dump_batches.py wrote."""

    def dumped(self, rank: int = 0) -> list[dict[str, Any]]:
        return [torch.load(path) for path in sorted((self.output / "dump").glob(f"{rank}-*.pt"))]

    @property
    def reference_passes(self) -> list[int]:
        """The micro-batches, from 1, in which the model was run without training: as the aligned one."""
        path = self.output / "dump" / "0-reference"
        return [int(line) for line in path.read_text().split()] if path.is_file() else []


class Workshop(Bench):
    """A folder with a tiny aligned model, data and safety tokens, in which configurations are run."""

    run_class = Run

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_rows(
            folder / "text.jsonl",
            [{"text": f"{WORDS[i % 6]} {i} and {WORDS[(i + 2) % 6]}"} for i in range(24)],
        )

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

    def train(self, name: str, *arguments: str, dump: bool = False, ranks: int = 0, **changes: Any) -> Run:
        """`axolotl train` into the folder `name`; by default without a launcher, which would take seconds.

        With `ranks`, that many processes know of each other as torchrun has them know.
        """
        plugins = ["pact_axolotl.PactPlugin"] + (["dump_batches.DumpPlugin"] if dump else [])
        config = self.config(**({"plugins": plugins} | changes))
        given = arguments or WITHOUT_LAUNCHER
        return self.on_configuration(["axolotl", "train"], name, config, *given, ranks=ranks)

    def axolotl(
        self, command: str, name: str, config: dict[str, Any], *arguments: str, **environment: str
    ) -> Run:
        """An `axolotl` command on a configuration."""
        return self.on_configuration(["axolotl", command], name, config, *arguments, **environment)

    def pact_train(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None, **changes: Any
    ) -> Run:
        """`pact-plugin train` on a configuration, by default without a launcher."""
        given = arguments or WITHOUT_LAUNCHER
        return self.on_configuration(
            [*PACT, "train"], name, self.config(**changes), *given, **(environment or {})
        )

    def on_configuration(
        self,
        words: list[str],
        name: str,
        config: dict[str, Any],
        *arguments: str,
        ranks: int = 0,
        **environment: str,
    ) -> Run:
        """Any command on a configuration; `environment` replaces what this process has."""
        output = self.folder / name
        file = self.folder / f"{name}-{words[-1]}.yml"
        file.write_text(yaml.safe_dump(config | {"output_dir": str(output)}))
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        base = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            "ACCELERATE_USE_CPU": "1",
        }
        starts_another = words[-1] == "train" and arguments != WITHOUT_LAUNCHER
        words = [*words, str(file), *arguments]
        known = words[0] == "axolotl" or words[:3] == PACT
        if known and not starts_another and "PATH" not in environment:
            return self.forked(words, output, base | environment, ranks)
        assert not ranks
        return self.command(words, output, **(base | environment))

    def forked(self, words: list[str], output: Path, environment: dict[str, str], ranks: int) -> Run:
        """The same in children of a process that has imported Axolotl; with ranks, as torchrun starts them."""
        log = self.folder / f"{output.name}.log"
        known = os.environ | self.environment(output) | environment
        return Run(output, axolotls_forks().run(words, known, log, ranks), log.read_text())


def axolotls_forks() -> Forks:
    return forks("axolotl.cli.main", "axolotl.cli.train", "axolotl.core.builders")


def ask_by_forks(command: list[str], timeout: float, *, check: bool = False) -> Any:
    """What `check` asks other interpreters; what it asks Axolotl's own is answered by a fork."""
    if command[1:3] != ["-m", "pact_axolotl.check.validation"] or Path(command[0]).parent != OWN:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=check)
    with tempfile.NamedTemporaryFile() as log:
        status = axolotls_forks().run(command, dict(os.environ), Path(log.name))
        return subprocess.CompletedProcess(command, status, "", Path(log.name).read_text())


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
