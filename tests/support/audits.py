"""Running `pact-plugin audit` on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from pact_plugin.audit.result import AuditResult
from pact_plugin.cli.main import app


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["audit", *map(str, arguments)])


def audit(folder: Path, output: Path, *more: object, candidate: str | None = "other") -> Any:
    """Audit a candidate of `folder` with its prompts; everyday questions are asked only where `more` says so."""
    arguments = ["--reference", folder / "aligned", "--output", output, "--device", "cpu"]
    arguments += [] if candidate is None else ["--candidate", folder / candidate]
    named = {"--prompts", "--harmful", "--benign"} & set(map(str, more))
    arguments += [] if named else ["--prompts", folder / "prompts.jsonl"]
    arguments += [] if "--everyday" in more else ["--no-everyday"]
    return run(*arguments, "--max-new-tokens", 12, *more)


def results(output: Path) -> AuditResult:
    return AuditResult.model_validate_json((output / "audit.json").read_text(encoding="utf-8"))


def adapted(model: Any, **settings: Any) -> Any:
    """With a LoRA adapter that changes the model strongly, in every layer that it has."""
    torch.manual_seed(0)
    modules = ["q_proj", "v_proj", "up_proj"]
    config = LoraConfig(
        r=4, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False, **settings
    )
    return get_peft_model(model, config)


def words(text: str) -> str:
    """What was printed, without line breaks and frames."""
    return " ".join(text.replace("│", " ").split())
