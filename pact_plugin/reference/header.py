"""What a store belongs to: `header.json` in its folder (spec/PACT.md, clause C7.5)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pact_plugin.errors import StoreError

HEADER_FILE = "header.json"
_REMEDY = "Delete the folder, or name another with `store`."
_WHAT = {
    "model": "predictions of another model, or of this one after training",
    "tokenizer": "another tokenizer's documents",
    "tokens": "predictions of other safety tokens",
    "objective": "another objective's predictions",
    "settings": "predictions for other `published` settings",
    "first_n": "predictions for another `first_n`",
}


@dataclass(frozen=True)
class Header:
    """What a store belongs to (clause C7.5).

    Args:
        model: Fingerprint of the aligned model.
        tokenizer: Fingerprint of its tokenizer.
        tokens: Digest of the safety tokens stored.
        count: K, their number.
        objective: `confidence` or `published`.
        settings: Those of the objective that the stored values depend on.
        first_n: Tokens of each response that are stored; None for all.
    """

    model: str
    tokenizer: str
    tokens: str
    count: int
    objective: str
    settings: dict[str, Any]
    first_n: int | None
    dtype: str = "float16"
    format: str = "pact-store"
    version: int = 1

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name it."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def width(self) -> int:
        """Values per position: K log-probabilities and log r, or K logits."""
        return self.count + (self.objective == "confidence")

    @property
    def end(self) -> int:
        """The first t without prompt-free logits."""
        return int(self.settings.get("gate_end", 0))

    def write(self, folder: Path) -> None:
        """Into a folder that has none; never half of it."""
        if (folder / HEADER_FILE).is_file():
            return
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=HEADER_FILE)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2, sort_keys=True)
        os.replace(temporary, folder / HEADER_FILE)

    def check(self, folder: Path) -> None:
        """Compare with what a folder holds, if anything.

        Raises:
            StoreError: It is another one, or cannot be read.
        """
        file = folder / HEADER_FILE
        if not file.is_file():
            return
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            theirs = None
        ours = asdict(self)
        if theirs == ours:
            return
        problem = f"{HEADER_FILE} cannot be read"
        if isinstance(theirs, dict):
            what = [text for name, text in _WHAT.items() if theirs.get(name) != ours[name]]
            problem = f"it holds {' and '.join(what) or 'another version of the format'}"
        raise StoreError(problem, key="store", value=str(folder), remedy=_REMEDY)
