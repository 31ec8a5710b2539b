"""What a fresh interpreter loads, for the tests of what each package may import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import house

ROOT = Path(__file__).parents[2]
FRAMEWORKS = house.TRAINERS | {"torch", "jax", "tensorflow", "cupy"}


def loaded_by(code: str) -> set[str]:
    """The frameworks that a fresh interpreter has loaded after `code`."""
    ask = f"import sys; print(*sorted(set({sorted(FRAMEWORKS)!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ask}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
