"""Arguments of the library, by the options of the command line that set them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pact_plugin.data.prompts import FORMATS
from pact_plugin.errors import PactError

_SAME = (
    *("base_model", "batch_size", "contrast", "device", "dtype", "everyday", "fail_over"),
    *("fail_under_refusal", "limit", "max_new_tokens", "noise_floor", "prompts", "safety_tokens"),
    *("task", "tokenizer", "top_k"),
)
FLAGS: Mapping[str, str] = {name: f"--{name.replace('_', '-')}" for name in _SAME} | {
    "everyday=False": "--no-everyday",
    "judges": "--judge",
}
_BY_OPTION = (
    " Without kinds, give it as --harmful or --benign. Another column of prompts is named by FILE#column."
)


def in_flags(text: str) -> str:
    """A text of the library that names arguments in backticks, naming options."""
    for argument, flag in FLAGS.items():
        text = text.replace(f"`{argument}`", flag)
    return text


@contextmanager
def flags_in_errors(prompts: str = FLAGS["prompts"]) -> Iterator[None]:
    """Let errors name options.

    Args:
        prompts: The option that gave the prompts.
    """
    flags = {**FLAGS, "prompts": prompts, "harmful": "--harmful", "benign": "--benign"}
    try:
        yield
    except PactError as error:
        remedy = in_flags(error.remedy) + (_BY_OPTION if error.remedy == FORMATS else "")
        key = None if error.key is None else flags.get(error.key, error.key)
        raise type(error)(error.problem, key=key, value=error.value, remedy=remedy) from error
