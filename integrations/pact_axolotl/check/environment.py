"""The Axolotl that would train: its interpreter, and what is installed there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_plugin.errors import AdapterError

_LAUNCHER = "accelerate"
"""What `axolotl train` calls by default, found on the path."""

_QUESTION = """
import importlib.metadata as metadata, importlib.util as util, json, sys
sys.path = [folder for folder in sys.path if folder]
def version(package, distribution):
    found = util.find_spec(package)
    try:
        return metadata.version(distribution) if found and found.origin else None
    except metadata.PackageNotFoundError:
        return "of unknown version"
plugins = {point.value.split(".")[0].split(":")[0] for point in metadata.entry_points(group="axolotl.plugins")}
print(json.dumps({
    "python": sys.executable,
    "version": version("axolotl", "axolotl"),
    "plugin": version("pact_axolotl", "pact-plugin"),
    "autoloads_plugins": "axolotl" in plugins,
    "registered": "pact_axolotl" in plugins,
}))
"""
"""Asked without importing Axolotl. A release that loads installed plugins registers its own in the same way."""


@dataclass(frozen=True)
class Axolotl:
    """An installed Axolotl.

    Args:
        python: Its interpreter.
        version: Its version.
        plugin: The version of pact-plugin that its interpreter can import; None where it cannot.
        autoloads_plugins: Whether it loads installed plugins without a line under `plugins:` (0.21 and newer do).
        registered: Whether PACT's plugin is installed as one.
    """

    python: str
    version: str
    plugin: str | None
    autoloads_plugins: bool
    registered: bool

    @property
    def needs_line(self) -> bool:
        """Whether PACT's plugin needs a line under `plugins:`; not where it is loaded without, once it is installed."""
        return not (self.autoloads_plugins and (self.registered or self.plugin is None))

    @property
    def is_before_0_21(self) -> bool:
        """Whether FSDP is its first version unless that is set."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is not None and (int(found[1]), int(found[2])) < (0, 21)


class UnknownInterpreterError(Exception):
    """A command `axolotl` of which it cannot be said which Python runs it."""


def find_axolotl() -> Axolotl | None:
    """The Axolotl that the command `axolotl` runs, else this interpreter's; None if there is neither.

    Raises:
        AdapterError: There is a command `axolotl`, but its interpreter has no Axolotl.
        UnknownInterpreterError: There is one, but it does not say what its interpreter is.
    """
    command = shutil.which("axolotl")
    if command is None:
        return _ask(sys.executable)
    python = _interpreter(Path(command))
    try:
        found = _ask(python)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # a wrapper of another kind
        raise UnknownInterpreterError(command) from error
    if found is None:
        raise AdapterError(
            f"the interpreter of this command, {python}, has no Axolotl",
            key="axolotl",
            value=command,
            remedy="Install Axolotl there, or activate the environment that has it.",
        )
    return found


def require_plugin(axolotl: Axolotl, *, listed: bool) -> None:
    """Refuse an environment in which the plugin cannot be imported by what trains.

    Args:
        axolotl: The Axolotl that would train.
        listed: Whether the configuration lists the plugin.

    Raises:
        AdapterError: Axolotl's interpreter, or that of the launcher that it calls, has no plugin.
    """
    if axolotl.plugin is None:
        stops = axolotl.autoloads_plugins and listed
        raise AdapterError(
            "Axolotl's environment has no pact-plugin: Axolotl would "
            + ("stop" if stops else "drop `pact` and train on, unconstrained"),
            key="pact-plugin",
            remedy=f"{axolotl.python} -m pip install 'pact-plugin[axolotl]'",
        )
    launcher = shutil.which(_LAUNCHER)
    if launcher is None or _interpreter(Path(launcher)) == axolotl.python:
        return
    try:
        other = _ask(_interpreter(Path(launcher)))
    except (OSError, ValueError, subprocess.SubprocessError):  # a wrapper, which may know where to go
        return
    if other is None or other.plugin is None:
        raise AdapterError(
            f"`axolotl train` calls this launcher, whose environment has no {'pact-plugin' if other else 'Axolotl'}",
            key=_LAUNCHER,
            value=launcher,
            remedy=f"Put {Path(axolotl.python).parent} first on PATH.",
        )


def ask_axolotl(axolotl: Axolotl, config: Path) -> dict[str, Any]:
    """What Axolotl's own reading of a configuration gives (see `pact_axolotl.check.validation`).

    Raises:
        AdapterError: Axolotl cannot read it at all.
        subprocess.TimeoutExpired: It took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = _run(
            [axolotl.python, "-m", "pact_axolotl.check.validation", str(config), str(answer)], timeout=300
        )
        if done.returncode == 0 and answer.is_file():
            return json.loads(answer.read_text(encoding="utf-8"))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    raise AdapterError(
        f"Axolotl {axolotl.version} cannot read this configuration ({lines[-1] if lines else 'no message'})",
        key="config",
        value=str(config),
        remedy="`axolotl preprocess` shows the whole error.",
    )


def _interpreter(command: Path) -> str:
    """The interpreter of a console script: in its first line, or beside it, as on Windows."""
    with command.open("rb") as stream:
        head = stream.read(1024).decode("utf-8", "replace").splitlines()
    if not head or not head[0].startswith("#!"):
        return sys.executable if command.parent == Path(sys.executable).parent else str(command)
    words = head[0][2:].split()
    if words[:1] == ["/bin/sh"] and len(head) > 1:  # the way around long paths, of pip and uv
        words = [path.strip() for path in re.findall(r"/[^\"']+", head[1])[:1]]
    elif words[:1] == ["/usr/bin/env"]:
        words = [shutil.which(word) or "" for word in words[1:] if not word.startswith("-")]
    return words[0] if words else str(command)


def _ask(python: str) -> Axolotl | None:
    answer = json.loads(_run([python, "-c", _QUESTION], timeout=60, check=True).stdout)
    return Axolotl(**answer) if answer["version"] is not None else None


def _run(command: list[str], timeout: float, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = os.environ | {"AXOLOTL_DO_NOT_TRACK": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=check
    )
