"""What every block of settings has in common: frozen, no unknown keys, errors that name the key and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from pact_plugin.errors import ConfigError


class Settings(BaseModel):
    """A block of settings; `_prefix` is its place in the whole configuration, such as `anchors.`."""

    _prefix: ClassVar[str] = ""
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # or `true` would pass for 1
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_config_error(type(self), error) from error


def switch(block: type[Settings], *, optional: bool = True) -> Callable[[Any], Any]:
    """A validator by which `true` means a block's defaults, `false` none, and a mapping its settings.

    Args:
        block: Its settings.
        optional: Whether it can be off.

    Raises:
        ConfigError: The value is none of these.
    """
    words, neither = ("`true`, `false`,", "true, false") if optional else ("`true`", "true")

    def read(value: Any) -> Any:
        if value is True:
            return block()
        if value is False and optional:
            return None
        if isinstance(value, block):
            return value
        if isinstance(value, dict):
            return block(**{str(key): setting for key, setting in value.items()})
        first = next(iter(block.model_fields))
        raise ConfigError(
            "it is empty" if value is None else f"neither {neither} nor a block of settings",
            key=block._prefix.removesuffix("."),
            value=value,
            remedy=f"Write {words} or a block such as `{{{first}: {block.model_fields[first].default}}}`.",
        )

    return read


def _blocks(model: type[Settings]) -> Iterator[tuple[str, set[str]]]:
    """The blocks below a block, with their keys."""
    for name, field in model.model_fields.items():
        for one in _types(field.annotation):
            if isinstance(one, type) and issubclass(one, Settings):
                yield name, set(one.model_fields)


def _types(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) or (annotation,)


def _as_config_error(model: type[Settings], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])  # what follows says which type of a union
    choices = [detail["msg"] for detail in error.errors() if detail["loc"][0] == name]
    key = model._prefix + name
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        inside = [block for block, fields in _blocks(model) if name in fields]
        hint = f"Valid keys: {', '.join(model.model_fields)}."
        if inside:
            hint = f"Write it below {' or '.join(f'`{block}:`' for block in inside)}."
        elif near:
            hint = f"Did you mean `{near[0]}`?"
        return ConfigError("unknown key", key=key, value=first["input"], remedy=hint)
    if first["input"] is None:
        return ConfigError("it is empty", key=key, value=None, remedy="Give a value, or remove the key.")
    remedy = "See its description in PactConfig."
    if first["type"] in ("int_type", "float_type") and _is_number(first["input"]):
        remedy = "Write the number without quotes, and with a dot before an exponent (`1.0e-4`): else YAML reads text."
    return ConfigError(
        ", or ".join(message[:1].lower() + message[1:] for message in choices),
        key=key,
        value=first["input"],
        remedy=remedy,
    )


def _is_number(value: Any) -> bool:
    """Whether a text stands for a number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
