"""`pact-plugin llamafactory train config.yaml`: LLaMA-Factory's own launcher, with PACT brought in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pact_llamafactory.problems import environment_problems
from pact_plugin.errors import AdapterError, PluginError


def run(arguments: Sequence[str]) -> int:
    """Train as `llamafactory-cli` would with these arguments.

    Args:
        arguments: `train`, a configuration file, and overrides such as `max_steps=10` or `pact.weight=2`.

    Returns:
        The exit status.

    Raises:
        AdapterError: The command is another, or the environment chooses trainers or workers that cannot be
            constrained.
        PluginError: LLaMA-Factory is missing.
    """
    if not arguments or arguments[0] != "train":
        raise AdapterError(
            "only training is constrained",
            key="llamafactory",
            value=" ".join(arguments) or None,
            remedy="Write `pact-plugin llamafactory train config.yaml`; for all else, `llamafactory-cli`.",
        )
    for problem in environment_problems():
        raise problem
    try:
        from llamafactory import launcher
    except ModuleNotFoundError as error:
        remedy = "pip install 'pact-plugin[llamafactory,cli]'"
        raise PluginError("the package llamafactory is missing", key="llamafactory", remedy=remedy) from error
    from pact_llamafactory.workflows import bring_in

    bring_in()
    # With several devices the launcher starts this file on each, which is its own otherwise.
    launcher.__file__ = str(Path(__file__).parent / "worker" / "train.py")
    sys.argv = ["llamafactory-cli", *arguments]
    try:
        launcher.launch()
    except subprocess.CalledProcessError as error:  # of torchrun, which has said why
        return error.returncode
    return 0
