"""What `pact-plugin check` and `axolotl pact-check` do."""

from __future__ import annotations

from pathlib import Path

from pact_axolotl.check.check import check


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
    report.show(config, as_json=as_json)
    return report.constrained
