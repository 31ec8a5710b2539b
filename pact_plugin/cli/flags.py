"""Arguments of the library, by the options of the command line that set them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pact_plugin.data.prompts import FORMATS, Kind
from pact_plugin.errors import PactError


def _options(*names: str) -> dict[str, str]:
    same = (*names, "batch_size", "device", "dtype", "limit", "max_new_tokens")
    return {name: f"--{name.replace('_', '-')}" for name in same}


SELECT: Mapping[str, str] = _options("base_model", "contrast", "top_k")
AUDIT: Mapping[str, str] = {
    **_options("everyday", "fail_over", "fail_under_refusal", "noise_floor", "prompts", "safety_tokens"),
    **_options("task", "tokenizer"),
    "everyday=False": "--no-everyday",
    "judges": "--judge",
}
_COLUMN = " Another column of prompts is named by FILE#column."
_WITHOUT_KINDS = f" Without kinds, give it as --harmful or --benign.{_COLUMN}"
_OF_ONE_KIND = (
    "Give a .jsonl file of objects with `prompt`, a .csv file with this column, or a .txt file with one prompt a line, "
    "none of them {other}."
)


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """A text of the library that names arguments in backticks, naming a command's options."""
    for argument, flag in flags.items():
        text = text.replace(f"`{argument}`", flag)
    return text


@contextmanager
def flags_in_errors(flags: Mapping[str, str], kind: Kind | None = None) -> Iterator[None]:
    """Let errors name a command's options.

    Args:
        flags: Those of the command, `SELECT` or `AUDIT`.
        kind: Of the prompts, where an option for that kind gave them.
    """
    keys = {**flags, "harmful": "--harmful", "benign": "--benign"}
    if kind is not None:
        keys["prompts"] = keys[kind]
    try:
        yield
    except PactError as error:
        remedy = in_flags(error.remedy, flags)
        if error.remedy == FORMATS:
            remedy = FORMATS + _WITHOUT_KINDS if kind is None else _of_one_kind(kind, flags)
        key = None if error.key is None else keys.get(error.key, error.key)
        raise type(error)(error.problem, key=key, value=error.value, remedy=remedy) from error


def _of_one_kind(kind: Kind, flags: Mapping[str, str]) -> str:
    both = " A file of both kinds is given as --prompts." if "prompts" in flags else ""
    return _OF_ONE_KIND.format(other="benign" if kind == "harmful" else "harmful") + both + _COLUMN
