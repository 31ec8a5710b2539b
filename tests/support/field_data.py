"""Small files in the form of the field benchmark's data, and cells of it without a model."""

from __future__ import annotations

import json
from dataclasses import asdict

from tiny import QUESTIONS, REQUESTS

from benchmarks.field.kept import VERSION
from benchmarks.field.settings import Cell, Sizes

SETS = ("strongreject", "advbench", "donotanswer", "overrefusal", "everyday")


def write_data(folder):
    """Every file that the benchmark reads; 210 requests of AdvBench, of which 10 are asked."""
    things = [f"{text} {n}" for n in range(21) for text in REQUESTS]
    short = [
        {"instruction": f"Name tree {n}", "input": "of five" if n % 2 else "", "output": f"Tree {n}"}
        for n in range(80)
    ]
    long = [
        {"instruction": f"Describe tree {n}", "input": "", "output": f"It is tree {n}. " * 20}
        for n in range(24)
    ]
    sums = [{"question": f"How much is {n} and 2?", "answer": f"<<{n}+2>>\n#### {n + 2}"} for n in range(80)]
    files = {
        "alpaca": short + long,
        "gsm8k_train": sums,
        "gsm8k_test": [{**row, "question": row["question"] + " Now"} for row in sums],
        "advbench": [{"prompt": text, "target": f"Sure, here is {n}"} for n, text in enumerate(things)],
        # The first is AdvBench's, too: it is asked once, or never.
        "strongreject": [{"prompt": things[0]}] + [{"prompt": f"{text}, now"} for text in REQUESTS * 2],
        "donotanswer": [{"prompt": f"{text} for\u2028me"} for text in REQUESTS],
        "overrefusal": [{"prompt": f"{text} gun"} for text in QUESTIONS],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(_line, rows)) + "\n")
    return folder


def _line(row):
    return json.dumps(row, ensure_ascii=False)


def write_cell(folder, cell, refused, *, held_out=((2.0, 2), (4.0, 2)), split="development", exact=()):
    """A made-up cell.

    Args:
        folder: Of the results.
        cell: Which.
        refused: By set, whether each prompt is refused.
        held_out: -log p and tokens of the task's items.
        split: Half that was asked.
        exact: Whether each problem was solved.
    """
    asked = {
        name: [
            {
                "prompt": f"{name} {n}",
                "answer": "I'm sorry, but I can't help with that." if one else "Sure, here is how to do it.",
                "verdict": "refused" if one else "complied",
                "refused": bool(one),
                "score": float(one),
                "likelihood": -9.0 if n == 0 else -1.0,
            }
            for n, one in enumerate(refused.get(name, []))
        ]
        for name in SETS
    }
    training = {
        "seconds": {"prepare": 1.0, "kept": 2.0, "train": 30.0},
        "tokens": {"trained": 100, "read": 10},
    }
    content = {
        "version": VERSION,
        "cell": asdict(cell),
        "split": split,
        "origin": {"sizes": asdict(Sizes("tiny")), "config": None},
        "training": {} if cell == Cell(cell.task) else training,
        "commit": "abc",
        "machine": {"cpu": "one", "threads": 1},
        "asked": asked,
        "held_out": [list(one) for one in held_out],
        "everyday": [[0.5, 5]],
        "exact": [{"right": one} for one in exact],
    }
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    (folder / "cells" / f"{cell.name}-{split}.json").write_text(json.dumps(content))
