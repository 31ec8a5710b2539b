"""lm-eval on both models, in processes of its own, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_plugin.audit.measures import LmEvalRow, LmEvalTable
from pact_plugin.errors import ConfigError, PluginError

Results = dict[tuple[str, str], tuple[float, float | None]]
"""(task, metric) -> value, and its standard error if there is one."""


@dataclass(frozen=True)
class LmEval:
    """Tasks of lm-eval for the reference and the candidate.

    Args:
        tasks: As `lm_eval --tasks` takes them.
        models: What `--model_args` says of the reference and of the candidate.
        options: More options, passed as they are.

    Raises:
        PluginError: lm-eval is not installed.
    """

    tasks: str
    models: tuple[str, str]
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _installed():
            raise PluginError(
                "its tasks need the package lm-eval",
                key="--lm-eval",
                value=self.tasks,
                remedy="pip install 'lm-eval[hf]', or leave it out.",
            )

    def run(self, report: Callable[[str], None]) -> LmEvalTable:
        """Evaluate the reference, then the candidate.

        Args:
            report: Called with what is done.

        Raises:
            ConfigError: lm-eval fails, such as on a task that it does not know.
        """
        found = []
        for title, model in zip(("reference", "candidate"), self.models, strict=True):
            report(f"lm-eval: {title}")
            found.append(self._one(model))
        return table(self.tasks, *found)

    def _one(self, model: str) -> Results:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model]
            command += ["--tasks", self.tasks, "--output_path", folder, *self.options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            written = sorted(Path(folder).rglob("results*.json"))
            if done.returncode or not written:
                lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
                last = lines[-1].strip() if lines else "it wrote no results"
                raise ConfigError(
                    f"lm-eval ended with status {done.returncode} ({last})",
                    key="--lm-eval",
                    value=self.tasks,
                    remedy=f"Try it by itself: {' '.join(['python', *command[1:]])}",
                )
            return results(json.loads(written[-1].read_text(encoding="utf-8")))


def _installed() -> bool:
    try:
        return importlib.util.find_spec("lm_eval") is not None
    except ValueError:  # a module that was made to count as missing
        return False


def results(content: Mapping[str, Any]) -> Results:
    """The numbers in a file of results, whose metrics are called `acc,none` and their errors `acc_stderr,none`."""
    found: Results = {}
    for task, row in content["results"].items():
        for key, value in row.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, bool) or not isinstance(value, int | float) or "," not in key:
                continue
            if not metric.endswith("_stderr"):
                error = row.get(f"{metric}_stderr,{filtered}")
                name = metric if filtered == "none" else f"{metric} ({filtered})"
                found[task, name] = (float(value), float(error) if isinstance(error, int | float) else None)
    return found


def table(tasks: str, reference: Results, candidate: Results) -> LmEvalTable:
    """Both models side by side."""
    rows = [
        LmEvalRow(
            task=task,
            metric=metric,
            reference=value,
            reference_error=error,
            candidate=candidate[task, metric][0],
            candidate_error=candidate[task, metric][1],
        )
        for (task, metric), (value, error) in reference.items()
        if (task, metric) in candidate
    ]
    return LmEvalTable(tasks=tasks, rows=rows)
