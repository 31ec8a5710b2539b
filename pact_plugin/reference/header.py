"""What a table belongs to: `header.json` in its folder (spec/PACT.md, clause C7.5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pact_plugin.data.files import written_whole
from pact_plugin.errors import ROUNDED, StoreError
from pact_plugin.reference.columns import Columns

HEADER_FILE = "header.json"
_REMEDY = "For a new run delete the folder, or name another with `advanced.store`."
_RANDOM = " A resumed run needs it: if new tokens or adapters start at random, call `set_seed` before they are made."
_WHAT = {
    "model": "predictions of another model, or of this one after training",
    "tokenizer": "another tokenizer's documents",
    "columns": "other predictions (other safety tokens, or other settings of easing or hold_data)",
}


@dataclass(frozen=True)
class Header:
    """What a table belongs to.

    Args:
        model: Fingerprint of the aligned model.
        tokenizer: Fingerprint of its tokenizer.
        columns: What is stored, in order: kind, the digest of the tokens or of the function and the number of values,
            first tokens, and the tokens that responses are read behind.
    """

    model: str
    tokenizer: str
    columns: tuple[dict[str, Any], ...]
    dtype: str = "float16"
    format: str = "pact-table"
    version: int = 1

    @classmethod
    def of(cls, model: str, tokenizer: str, columns: Sequence[Columns]) -> Header:
        """The header of a table of some columns."""
        return cls(model, tokenizer, described(columns))

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of its SHA-256."""
        return digest_of(asdict(self))

    def write(self, folder: Path) -> None:
        """Into a folder that has none; never half of it."""
        if (folder / HEADER_FILE).is_file():
            return
        with written_whole(folder / HEADER_FILE) as part:
            part.write_text(json.dumps(asdict(self), indent=2, sort_keys=True), encoding="utf-8")

    def check(self, folder: Path) -> None:
        """Compare with what a folder holds, if anything.

        Raises:
            StoreError: It is another one, or cannot be read.
        """
        file = folder / HEADER_FILE
        if not file.is_file():
            if any(folder.glob("*.shard")) or any(folder.glob("[0-9]*.part")):
                raise StoreError(
                    f"it holds predictions without their {HEADER_FILE}, which says of which model they are",
                    key="advanced.store",
                    value=str(folder),
                    remedy=_REMEDY,
                )
            return
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            theirs = None
        ours = json.loads(json.dumps(asdict(self)))
        if theirs == ours:
            return
        problem, remedy = f"{HEADER_FILE} cannot be read", _REMEDY
        if isinstance(theirs, dict):
            what = [text for name, text in _WHAT.items() if theirs.get(name) != ours[name]]
            remedy += _RANDOM if theirs.get("model") != ours["model"] else ""
            remedy += ROUNDED if what == [_WHAT["columns"]] else ""
            problem = f"it holds {' and '.join(what) or 'another version of the format'}"
        raise StoreError(problem, key="advanced.store", value=str(folder), remedy=remedy)


def described(columns: Sequence[Columns]) -> tuple[dict[str, Any], ...]:
    """What columns are, as plain JSON values."""
    return tuple(_described(one) for one in columns)


def digest_of(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(one: Columns) -> dict[str, Any]:
    digest = digest_of(one.ids) if one.linear is None else one.linear.digest
    behind = None if one.behind is None else list(one.behind)
    return {"kind": one.kind, "of": digest, "width": one.width, "first": one.first, "behind": behind}
