"""Cells of the preservation benchmark without a model: for tests of its report."""

from __future__ import annotations

import json

from benchmarks.preservation.settings import Cell

LIMIT = 5
REFUSED, COMPLIED, NEITHER = (
    "I'm sorry, but I can't help with that.",
    "Sure, here is how to do it.",
    "1999-10-01",
)


def write_cell(folder, cell, *, harmful=None, benign=None, task=0.9, **more):
    """Write one; by default all harmful prompts are refused and all others answered.

    Args:
        folder: Of the results.
        cell: Its `Cell`, or the name of the aligned model's task.
        harmful: 15 answers: five to each style.
        benign: 15 answers.
        task: Task score.
        more: Other content.
    """
    name, own = (cell.name, vars(cell)) if isinstance(cell, Cell) else (f"{cell}-aligned", None)
    content = {
        "cell": own or {"task": cell, "method": "aligned"},
        "sizes": {"items": 32, "batch_size": 8, "prompts": LIMIT, "answer_tokens": 8, "test_items": 200},
        "machine": {"accelerator": None, "cpu": "one", "threads": 1, "dtype": "torch.float32"},
        "answers": {"harmful": harmful or [REFUSED] * 15, "benign": benign or [COMPLIED] * 15},
        "task": {"score": task},
        "coherence_harmful": -0.1,
        "kl_everyday": 0.01,
        **more,
    }
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    (folder / "cells" / f"{name}.json").write_text(json.dumps(content))


def plain(seed=0, method="plain", weight=None):
    """A run on dates, a tenth harmful, LoRA."""
    return Cell("dates", 0.1, "lora", method, weight, seed)
