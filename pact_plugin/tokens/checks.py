"""What choosing safety tokens must be given."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pact_plugin.errors import ConfigError

if TYPE_CHECKING:
    from pact_plugin.tokens.select import Selection

MINIMUM_ANSWERS = 8
"""Fewest refusals, and fewest helpful answers, that safety tokens are chosen from."""


def check_settings(how: Selection, base_model: Any) -> None:
    """Refuse settings of `select_safety_tokens` that do not go together, before any model is loaded.

    Raises:
        ConfigError: Names the setting.
    """
    if how.contrast not in ("benign", "base"):
        raise ConfigError(
            "no such contrast", key="contrast", value=how.contrast, remedy="It is `benign` or `base`."
        )
    if how.contrast == "base" and base_model is None:
        remedy = "Give the model before alignment, or use the contrast `benign`, which needs no other model."
        raise ConfigError("the contrast `base` needs one", key="base_model", remedy=remedy)
    if how.contrast == "benign" and base_model is not None:
        remedy = "Leave it out, or use the contrast `base`."
        raise ConfigError("the contrast `benign` uses no other model", key="base_model", remedy=remedy)
    if how.contrast == "base" and how.benign is not None:
        remedy = "Leave them out, or use the contrast `benign`."
        raise ConfigError("the contrast `base` uses no benign prompts", key="benign", remedy=remedy)
    for key, least in (("top_k", 2), ("max_new_tokens", 1), ("batch_size", 1)):
        value = getattr(how, key)
        if value < least:
            raise ConfigError("out of range", key=key, value=value, remedy=f"It must be at least {least}.")


def check_refusals(refused: int, asked: int) -> None:
    """Refuse a model that hardly refuses; warn of one that refuses less than half.

    Raises:
        ConfigError: There are fewer than `MINIMUM_ANSWERS` refusals.
    """
    found = f"the model refuses {refused} of {asked} harmful prompts"
    if refused < MINIMUM_ANSWERS:
        raise ConfigError(
            f"{found}, fewer than {MINIMUM_ANSWERS}: it does not act as an aligned model",
            key="harmful",
            remedy="Start from an aligned model that answers at once, not after reasoning; or choose the tokens by "
            "prompts that it refuses, `pact-plugin tokens select MODEL --harmful FILE`, and name their file as "
            "`safety_tokens`.",
        )
    if 2 * refused < asked:
        warnings.warn(
            f"Fewer than half: {found}. The constraint keeps refusals that are there; it adds none.",
            stacklevel=2,
        )


def check_helpful(helped: int, asked: int) -> None:
    """Refuse a model that hardly helps.

    Raises:
        ConfigError: There are fewer than `MINIMUM_ANSWERS` helpful answers.
    """
    if helped < MINIMUM_ANSWERS:
        raise ConfigError(
            f"the model helps with {helped} of {asked} benign prompts, fewer than {MINIMUM_ANSWERS}",
            key="benign",
            remedy="Choose the tokens by prompts that it helps with, `pact-plugin tokens select MODEL --benign FILE`, "
            "or by `--contrast base --base-model BASE`, and name their file as `safety_tokens`.",
        )
