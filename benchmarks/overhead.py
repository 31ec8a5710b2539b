"""A constrained step beside the same plain step: time, peak memory, and what filling the table adds to a whole run.

Time: one process, one real trainer, whose constraint is switched from step to step over the same batch; each ratio is
that of a constrained step to the plain one of its cycle. Memory: a process for each kind, since a peak cannot be split.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import EXACT, can_measure
from benchmarks.settings import PLAIN, Settings
from benchmarks.shapes import response_length

EPOCHS = 3
"""Of the whole run whose cost is given."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Quartiles:
    """Median and interquartile range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> Quartiles:
        """Quartiles of some numbers."""
        low, median, high = np.percentile(np.asarray(values, float), [25, 50, 75])
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Kind:
    """A plain or constrained step, measured."""

    seconds: Quartiles
    time_ratio: Quartiles
    """To the plain step of the same cycle."""
    tokens_per_second: float
    """Of the batch, prompt and response, at the median."""
    peak_bytes: int | None
    """Of steps, with model, gradients and optimiser; None where it was not measured."""
    memory_ratio: float | None
    out_of_memory: bool
    """In the process that measured the peak."""
    fill_seconds: float | None = None
    """Filling the table for one plain epoch's documents, which the next number is a share of."""
    fill_share: float | None = None
    fill_peak_bytes: int | None = None
    table_bytes_per_token: float | None = None
    """On disk, for each response token."""
    run_ratio: float | None = None
    """Time of three epochs, filling included, to three plain ones."""


def measure(settings: Settings, folder: Path, report: Report, *, memory: bool = True) -> dict[str, Kind]:
    """Every kind of step of some settings, the plain one first.

    Args:
        settings: What to measure.
        folder: For trainers and tables; emptied before and after.
        report: Is told what goes on.
        memory: Whether to measure it.
    """
    names = [PLAIN, *settings.modes]
    peaks: dict[str, dict[str, Any]] = {}
    if memory and can_measure(settings.device):
        for name in names:
            report(f"memory of {name}")
            peaks[name] = _run("memory", _only(settings, name), name, folder)
    out_of_memory = [name for name in names if "out_of_memory" in peaks.get(name, {})]
    timed = tuple(name for name in settings.modes if name not in out_of_memory)
    report(f"time of {', '.join(timed) or PLAIN}")
    found = _run("time", replace(settings, modes=timed), PLAIN, folder)
    if "out_of_memory" in found:
        raise SystemExit(f"plain training runs out of memory: {found['out_of_memory']}")
    return {name: _kind(name, settings, found, peaks) for name in names if name not in out_of_memory} | {
        name: _too_large() for name in out_of_memory
    }


def _only(settings: Settings, name: str) -> Settings:
    return replace(settings, modes=() if name == PLAIN else (name,))


def _run(what: str, settings: Settings, name: str, folder: Path) -> dict[str, Any]:
    """One worker, or as many as there are ranks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result = folder / "result.json"
    launcher = [sys.executable]
    if settings.ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings.ranks}"]
    environment = (
        os.environ | {"OMP_NUM_THREADS": str(settings.threads)} | (EXACT if what == "memory" else {})
    )
    command = [*launcher, "-m", "benchmarks.worker", what, settings.to_json(), name, str(folder), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(result.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _kind(name: str, settings: Settings, found: dict[str, Any], peaks: dict[str, dict[str, Any]]) -> Kind:
    shape, ranks = settings.sizes, settings.ranks
    seconds, plain = np.array(found["seconds"][name]), np.array(found["seconds"][PLAIN])
    ratio, median = Quartiles.of(seconds / plain), Quartiles.of(seconds)
    peak, plain_peak = (peaks.get(key, {}).get("step") for key in (name, PLAIN))
    fill = found["fill_seconds"].get(name)
    extra: dict[str, Any] = {}
    if fill is not None:
        epoch = float(np.median(plain)) * settings.fill_batches
        responses = (
            settings.fill_batches
            * shape.batch
            * ranks
            * response_length(shape.length, settings.response_share)
        )
        extra = {
            "fill_seconds": fill,
            "fill_share": fill / epoch,
            "fill_peak_bytes": peaks.get(name, {}).get("fill"),
            "table_bytes_per_token": found["table_bytes"][name] / responses,
        }
    return Kind(
        seconds=median,
        time_ratio=ratio,
        tokens_per_second=shape.batch * ranks * shape.length / median.median,
        peak_bytes=peak,
        memory_ratio=peak / plain_peak if peak and plain_peak else None,
        out_of_memory=False,
        run_ratio=ratio.median + extra.get("fill_share", 0.0) / EPOCHS,
        **extra,
    )


def _too_large() -> Kind:
    none = Quartiles(float("nan"), float("nan"), float("nan"))
    return Kind(none, none, float("nan"), None, None, out_of_memory=True)
