"""What `pact-plugin check` and `axolotl pact-check` do."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from pact_axolotl.check.check import check
from pact_axolotl.check.view import show


def run(config: Path, *, as_json: bool = False, python: str | None = None) -> bool:
    """Check a configuration and print the report.

    Args:
        config: An Axolotl configuration.
        as_json: Print one JSON object and nothing else.
        python: The interpreter whose Axolotl would train; that of the command `axolotl` when absent.

    Returns:
        Whether the run would be constrained.
    """
    report = check(config, python=python)
    if as_json:
        print(json.dumps(report.as_json(), default=str))
    else:
        show(report, config, Console(highlight=False, soft_wrap=True))
    return report.constrained
