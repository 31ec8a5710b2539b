"""Another process that fills a table, one document for each answer to it. For test_table_filling.py, which kills it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from loop import TOKENIZER, a_batch, settings
from tiny import tiny_model
from torch import Tensor

from pact_plugin import PactConstraint


def batches(number: int = 40) -> list[dict[str, Tensor]]:
    return [a_batch(seed, rows=1, width=10 + seed % 3) for seed in range(number)]


def constraint(folder: str | Path) -> PactConstraint:
    return PactConstraint(tiny_model(), TOKENIZER, settings(hold_data=True, advanced={"store": folder}))


def fill(folder: Path, told: Connection) -> None:
    built = constraint(folder)

    def slowly(*_: object) -> None:
        told.send("pass")
        told.recv()

    built.model.register_forward_hook(slowly)
    built.fill(batches(), tokens_per_pass=1, progress=False)
    told.send("filled")


@contextmanager
def filling(folder: Path) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that tells of each pass and then waits for anything; over when it has ended.

    A fork, as importing all anew takes seconds.
    """
    fork = get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=fill, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()
    with ours:
        yield process, ours
    process.join()
