"""LLaMA-Factory's own launcher, with PACT brought in, for `pact-plugin train`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pact_plugin.errors import AdapterError, PluginError
from pact_plugin.hooks.spec import TrainCommand, hookimpl


@hookimpl
def pact_train_commands() -> Iterable[TrainCommand]:
    """`pact-plugin train`."""
    return [TrainCommand("llamafactory", output, run)]


def output(config: Path) -> Path:
    """Where a configuration's run writes.

    Raises:
        ConfigError: The configuration cannot be read.
    """
    from pact_llamafactory.check.config_file import read
    from pact_llamafactory.settings import output_of

    return output_of(read(config))


def run(config: Path, launcher: str | None, arguments: Sequence[str]) -> int:
    """Train as `llamafactory-cli train` would by the configuration without `pact`.

    Args:
        config: The configuration.
        launcher: None: LLaMA-Factory has one, which environment variables set up.
        arguments: None.

    Returns:
        The exit status.

    Raises:
        AdapterError: A launcher or arguments are given.
        PluginError: LLaMA-Factory is missing, or torchrun, which it starts for several devices.
    """
    if launcher is not None or arguments:
        raise AdapterError(
            "LLaMA-Factory's launcher takes no arguments",
            key="launcher",
            value=launcher or " ".join(arguments),
            remedy="Set its environment variables, such as FORCE_TORCHRUN and NPROC_PER_NODE; write all else into the "
            "configuration.",
        )
    try:
        from llamafactory import launcher as own
    except ModuleNotFoundError as error:
        remedy = "pip install 'pact-plugin[llamafactory,cli]'"
        raise PluginError("the package llamafactory is missing", key="llamafactory", remedy=remedy) from error
    from pact_llamafactory.workflows import bring_in

    bring_in()
    # With several devices the launcher starts this file on each, which is its own otherwise.
    own.__file__ = str(Path(__file__).parent / "worker" / "train.py")
    sys.argv = ["llamafactory-cli", "train", str(config)]
    try:
        own.launch()
    except subprocess.CalledProcessError as error:  # of torchrun, which has said why
        return error.returncode
    except FileNotFoundError as error:
        if error.filename != "torchrun":
            raise
        remedy = (
            "Activate the environment that has LLaMA-Factory: its launcher looks for `torchrun` on the PATH."
        )
        raise PluginError("torchrun is not found", key="PATH", remedy=remedy) from error
    except SystemExit as end:  # with 0 after torchrun
        if end.code:
            raise
    return 0
