"""The results for programs: one JSON file with what was measured and on what."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.overhead import Kind
from benchmarks.settings import Settings

Run = tuple[Settings, dict[str, Kind]]
"""Settings, and what was measured of each kind of step."""


def write(path: Path, machine: dict[str, Any], runs: list[Run]) -> None:
    """Write measurements as JSON; a number that does not exist is null."""
    content = {
        "format": "pact-overhead",
        "version": 1,
        "machine": machine,
        "runs": [
            {
                "settings": asdict(settings) | asdict(settings.sizes),
                "kinds": {name: asdict(kind) for name, kind in kinds.items()},
            }
            for settings, kinds in runs
        ],
    }
    path.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
