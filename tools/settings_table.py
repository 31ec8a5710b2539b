"""The table of every key of PactConfig, as Markdown, from the class itself.

`python tools/settings_table.py` writes it into the page of settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from pact_plugin.config import PactConfig
from pact_plugin.settings import Settings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
BEGIN, END = "<!-- settings: written by tools/settings_table.py -->\n", "<!-- end of settings -->\n"

_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text"}
_BOUNDS = {annotated_types.Ge: ("ge", "≥"), annotated_types.Gt: ("gt", ">"), annotated_types.Le: ("le", "≤")}


def settings_table() -> str:
    """Key, type, default and meaning of every setting, those of blocks with their full names."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *_rows(PactConfig)]) + "\n"


def _rows(model: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key, choices = f"{prefix}{name}", get_args(field.annotation) or (field.annotation,)
        blocks = [one for one in choices if isinstance(one, type) and issubclass(one, Settings)]
        if not blocks:
            yield _row(key, _kind(field), _shown(field.default), field)
        elif NoneType in choices:  # a block that can be switched off
            default = "`false`" if field.default is None else "`true`"
            yield _row(key, "true, false or a block", default, field)
        for block in blocks:
            yield from _rows(block, f"{key}.")


def _row(key: str, kind: str, default: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{key}` | {kind} | {default} | {meaning} |"


def _kind(field: FieldInfo) -> str:
    whole = get_origin(field.annotation) in (Literal, None)
    choices = (field.annotation,) if whole else get_args(field.annotation)
    kinds = [_choice(choice, field.metadata) for choice in choices if choice is not NoneType]
    return " or ".join(kind for kind in kinds if kind)


def _choice(kind: Any, metadata: Sequence[Any]) -> str:
    """One type of a union; bounds are its own or the field's. Nothing of a type that no file can hold."""
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is Annotated:
        kind, *own = get_args(kind)
        metadata = [bound for one in own for bound in getattr(one, "metadata", [one])]
    bounds = [
        f"{sign} {getattr(bound, attribute):g}"
        for bound in metadata
        for bounding, (attribute, sign) in _BOUNDS.items()
        if isinstance(bound, bounding)
    ]
    name = _NAMES.get(kind, "")
    return " ".join([name, *bounds[:1]]) + "".join(f" and {bound}" for bound in bounds[1:])


def _shown(default: Any) -> str:
    if default is None:
        return "unset"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def with_settings(text: str) -> str:
    """The page of settings with the table, in place of what stands between its two marks."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + settings_table() + END, text, flags=re.S
    )


if __name__ == "__main__":
    PAGE.write_text(with_settings(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
