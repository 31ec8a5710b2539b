"""Runs of `axolotl` in children of one process that has imported it: its imports take most of the time of a short run.

Started by `Forks`; read and answered line by line, in JSON.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


class Forks:
    """A process that waits with Axolotl imported, and forks for each command."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.process.kill)

    def run(self, words: Sequence[str], environment: dict[str, str], log: Path) -> int:
        """The status of a command, whose output goes into a file."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"words": list(words), "environment": environment, "log": str(log), "folder": os.getcwd()}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@cache
def forks() -> Forks:
    """That of this process."""
    return Forks()


def command(request: dict[str, Any]) -> int:
    """Be the command `axolotl`."""
    from axolotl.cli.main import main

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:0] = request["environment"]["PYTHONPATH"].split(os.pathsep)
    sys.argv = request["words"]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # imports write, too

    import gc
    import signal
    import traceback

    import axolotl.cli.main
    import axolotl.cli.train
    import axolotl.core.builders  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(300)  # nothing here takes so long
                log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                for stream in (1, 2):
                    os.dup2(log, stream)
                status = command(request)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
