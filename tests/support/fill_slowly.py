"""Fills a table, one document for each line of its input: fill_slowly.py FOLDER. For test_table.py, which kills it."""

from __future__ import annotations

import sys
from pathlib import Path

from loop import TOKENIZER, a_batch, settings
from tiny import tiny_model
from torch import Tensor

from pact_plugin import PactConstraint


def batches(number: int = 40) -> list[dict[str, Tensor]]:
    return [a_batch(seed, rows=1, width=10 + seed % 3) for seed in range(number)]


def constraint(folder: str | Path) -> PactConstraint:
    return PactConstraint(tiny_model(), TOKENIZER, settings(hold_data=True, advanced={"store": folder}))


if __name__ == "__main__":
    built = constraint(sys.argv[1])

    def slowly(*_: object) -> None:
        print("pass", flush=True)
        sys.stdin.readline()

    built.model.register_forward_hook(slowly)
    built.fill(batches(), tokens_per_pass=1, progress=False)
    print("filled", flush=True)
