"""What `pact-plugin check` does."""

from __future__ import annotations

from pathlib import Path

from pact_axolotl.check.check import check


def run(config: Path, *, as_json: bool = False) -> bool:
    """Check a configuration and print the report.

    Args:
        config: An Axolotl configuration.
        as_json: Print one JSON object and nothing else.

    Returns:
        Whether the run would be constrained.
    """
    report = check(config)
    report.show(config, as_json=as_json)
    return report.constrained
