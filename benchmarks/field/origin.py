"""What a run was made of, so that a folder of other runs is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.field.data import Data, training_items
from benchmarks.field.measure import Questions
from benchmarks.field.methods import Method
from benchmarks.field.settings import ALIGNED, Cell
from benchmarks.field.start import Start

Origin = dict[str, Any]
"""As plain JSON values: `sizes`, `config` (of pact-plugin, None for other methods), and SHA-256 digests of what the
run reads: `items` that are trained on, `tokens` where a file of safety tokens is named, `questions`."""


def trained_on(start: Start, data: Data, cell: Cell, method: Method | None) -> Origin:
    """Of an adapter; of the aligned model, which has no method, what its cell shares with the others."""
    items = [] if cell.method == ALIGNED else training_items(data, cell, start.sizes)
    named = None if method is None or method.config is None else start.tokens_file
    return {
        "sizes": asdict(start.sizes),
        "config": None if method is None else method.config,
        "items": _digest([asdict(one) for one in items]),
        "tokens": None if named is None else hashlib.sha256(named.read_bytes()).hexdigest(),
    }


def asked(questions: Questions) -> Origin:
    """Of the measures of a model."""
    return {"questions": _digest(asdict(questions))}


def differing(there: Origin, wanted: Origin) -> Sequence[str]:
    """The names of what is not the same."""
    return [name for name, value in wanted.items() if there.get(name) != value]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
