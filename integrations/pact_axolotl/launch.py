"""`axolotl train`, for `pact-plugin train`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pact_plugin.errors import AdapterError
from pact_plugin.hooks.spec import TrainCommand, hookimpl


@hookimpl
def pact_train_commands() -> Iterable[TrainCommand]:
    """`pact-plugin train`."""
    return [TrainCommand("axolotl", output, run)]


def output(config: Path) -> Path:
    """Where a configuration's run writes.

    Raises:
        ConfigError: The configuration cannot be read.
    """
    from pact_axolotl.check.config_file import located, read
    from pact_axolotl.settings import output_of

    return output_of(read(located(config)))


def run(config: Path, launcher: str | None, arguments: Sequence[str]) -> int:
    """Train by `axolotl train`, the command that `check` asks: on the path, or beside this interpreter.

    Args:
        config: The configuration.
        launcher: Axolotl's `--launcher`; its own choice when None.
        arguments: For that launcher.

    Returns:
        The command's exit status; 128 and the number of the signal that ended it.

    Raises:
        AdapterError: There is no such command.
    """
    from pact_axolotl.check.config_file import located

    beside = Path(sys.executable).parent
    command = shutil.which("axolotl") or shutil.which("axolotl", path=str(beside))
    if command is None:
        raise AdapterError(
            "no command `axolotl` was found",
            key="axolotl",
            remedy="Activate the environment that has Axolotl, or install it: pip install 'pact-plugin[axolotl]'",
        )
    chosen = [] if launcher is None else ["--launcher", launcher]
    given = ["--", *arguments] if arguments else []
    # Axolotl calls its launcher by name; that of its own environment comes first.
    path = os.pathsep.join([str(Path(command).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [command, "train", str(located(config)), *chosen, *given],
        env=os.environ | {"PATH": path},
        check=False,
    )
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
