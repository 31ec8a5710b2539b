"""Write the conformance vectors from the reference: `python -m pact_spec.generate [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from pact_spec.cases import confidence, direction, published
from pact_spec.vectors import FOLDER, Case, dump

CASES: dict[str, list[Case]] = {
    "confidence_divergence": confidence.cases(),
    "published_divergence": published.cases(),
    "safety_direction": direction.cases(),
}


def main(folder: Path) -> None:
    """Write one file for each function."""
    for function, cases in CASES.items():
        path = folder / f"{function}.json"
        path.write_text(dump(function, cases), encoding="utf-8")
        print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
