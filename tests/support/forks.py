"""Commands and scripts as children of one process that has imported what they need: imports take most of a short run.

Started by `Forks`; read and answered line by line, in JSON.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OWN = Path(sys.executable).parent
_run = subprocess.run


class Forks:
    """A process that waits with some modules imported, as far as they are there, and forks for each command."""

    def __init__(self, *modules: str) -> None:
        on_cpu = {"ACCELERATE_USE_CPU": "1", "DS_ACCELERATOR": "cpu"}
        # A packing sampler would be compiled anew in each child, for seconds.
        uncompiled = {"NUMBA_DISABLE_JIT": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | on_cpu | uncompiled,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.process.kill)

    def run(self, words: Sequence[str], environment: dict[str, str], log: Path, ranks: int = 0) -> int:
        """The status of a command, whose output goes into a file.

        Args:
            words: A script, `axolotl`, or this interpreter and `-m` with a module; and arguments.
            environment: All variables of the command.
            log: The file.
            ranks: Processes in a group, as torchrun starts them; 0 starts one that knows of none. If one fails, the
                others are stopped.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "words": list(words),
            "environment": environment,
            "logs": [str(log)] * 2,
            "folder": os.getcwd(),
            "ranks": ranks,
        }
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@cache
def forks(*modules: str) -> Forks:
    """That of this process and these modules."""
    return Forks(*modules)


def run_script(name: str, *arguments: str, log: Path, ranks: int) -> str:
    """What a script of this folder prints, on so many ranks (0: without a group).

    Raises:
        AssertionError: It failed.
    """
    return run_words([str(HERE / name), *arguments], dict(os.environ), log, ranks)


def run_words(words: Sequence[str], environment: dict[str, str], log: Path, ranks: int = 0) -> str:
    """The same of any script or module; see `Forks.run`."""
    server = forks("datasets", "deepspeed", "peft", "sklearn.linear_model", "trl")
    status = server.run(words, environment, log, ranks)
    assert status == 0, log.read_text()[-3500:]
    return log.read_text()


def command(request: dict[str, Any]) -> int:
    """Be the command or the script."""
    import runpy

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = request["words"]
    subprocess.run = run_here
    try:
        if Path(sys.argv[0]).name == "axolotl":
            from axolotl.cli.main import main

            main()
        elif sys.argv[1:2] == ["-m"]:
            sys.argv = sys.argv[2:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def run_here(words: Sequence[Any], **how: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, by a fork where a command starts Axolotl, or a module of ours, of this environment."""
    program, *arguments = map(str, words)
    module = Path(program).name.startswith("python") and arguments[:1] == ["-m"]
    command = Path(program).name == "axolotl" and arguments[-2:] == ["--launcher", "python"]
    if Path(program).parent != OWN or not (command or (module and arguments[1].startswith("pact_"))):
        return _run(words, **how)
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("out", "err")] if how.get("capture_output") else []
        for name in names:
            Path(name).touch()
        environment = dict(how.get("env") or os.environ)
        request = {"words": [program, *arguments], "environment": environment, "folder": os.getcwd()}
        _, status = os.waitpid(child(request | {"logs": names}), 0)
        said = [Path(name).read_text() for name in names] or [None, None]
    done: subprocess.CompletedProcess[str] = subprocess.CompletedProcess(
        words, os.waitstatus_to_exitcode(status), *said
    )
    if how.get("check"):
        done.check_returncode()
    return done


def group(ranks: int) -> list[dict[str, str]]:
    """The variables of each rank, as torchrun sets them."""
    if not ranks:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def child(request: dict[str, Any]) -> int:
    """The process of a forked one; without logs it writes where this one does."""
    import traceback

    process = os.fork()
    if process:
        return process
    status = 1
    try:
        signal.alarm(600)  # nothing here takes so long
        for stream, log in zip((1, 2), request["logs"], strict=False):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
        status = command(request)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(request: dict[str, Any]) -> int:
    Path(request["logs"][0]).write_text("")
    environment, running, found = request["environment"], set(), 0
    for rank in group(request["ranks"]):
        running.add(child(request | {"environment": environment | rank}))
    while running:
        process, status = os.wait()
        running.discard(process)
        if status and not found:
            found = os.waitstatus_to_exitcode(status)
            for other in running:
                os.kill(other, signal.SIGKILL)
    return found


def serve(modules: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # imports write, too

    import gc
    from importlib import import_module
    from importlib.util import find_spec

    for module in modules:
        if find_spec(module.partition(".")[0]):
            import_module(module)
    if "multiprocess" in sys.modules:
        # `datasets` saves in processes that it spawns: each imports for seconds what is here already.
        contexts = sys.modules["multiprocess.context"]._concrete_contexts
        contexts["spawn"] = contexts["fork"]
    gc.freeze()
    for line in sys.stdin:
        print(status_of(json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
