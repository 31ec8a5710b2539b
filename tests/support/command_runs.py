"""Finished commands of a trainer framework, and the folder in which they run, for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_aligned_model, tiny_tokenizer

import pact_plugin as pact
from pact_plugin.data.prompts import for_pool

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
        """Everything that was logged, from the last checkpoint."""
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


class Bench:
    """A folder with a tiny aligned model, data and safety tokens."""

    run_class: type[Run] = Run

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.tokenizer = tiny_aligned_model(max_position_embeddings=1024), tiny_tokenizer()
        self.model.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")
        self.tokens = pact.SafetyTokens.for_tokenizer(
            self.tokenizer, [40, 41, 42, 43, 75], [1.0, 0.5, -0.2, 0.1, 0.3]
        )
        self.tokens.save(folder / "tokens.safetensors")
        write_rows(folder / "chat.jsonl", [{"messages": _conversation(i)} for i in range(48)])

    @property
    def named_tokens(self) -> dict[str, str]:
        """The setting that names the safety tokens."""
        return {"safety_tokens": str(self.folder / "tokens.safetensors")}

    def environment(self, output: Path) -> dict[str, str]:
        """Variables of every command."""
        return {"DUMP_BATCHES": str(output / "dump"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def command(self, words: Sequence[str], output: Path, **environment: str) -> Any:
        """Run a command whose output goes into a folder."""
        done = subprocess.run(
            list(words),
            env=os.environ | self.environment(output) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return self.run_class(output, done.returncode, done.stdout)


def _conversation(i: int) -> list[dict[str, str]]:
    """Of even ones the first prompt is a harmful one of the pool, so a probe sees that in most; every sixth refuses."""
    return [
        {"role": "user", "content": f"How do I write {i}?" if i % 2 else SHORT[i // 2]},
        {"role": "assistant", "content": WORDS[i % 6]},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": f"{WORDS[(i + 1) % 6]} five"},
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
