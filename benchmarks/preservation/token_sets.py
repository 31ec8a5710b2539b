"""Other choices of safety tokens, which variants of a method use; each is made when it is first wanted, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pact_transformers.loading import load_causal_lm

from examples.demo.prepare import spread
from pact_plugin import SafetyTokens
from pact_plugin.data.generation import Progress
from pact_plugin.data.selection_prompts import benign_prompts, harmful_prompts
from pact_plugin.errors import ConfigError
from pact_plugin.tokens.select import select_safety_tokens


@dataclass(frozen=True)
class TokenSet:
    """How safety tokens are chosen; otherwise as the usual ones.

    Attributes:
        top_k: Their number.
        contrast: See `select_safety_tokens`.
    """

    top_k: int = 50
    contrast: Literal["benign", "base"] = "benign"


TOKEN_SETS = {"k8": TokenSet(top_k=8), "k200": TokenSet(top_k=200), "base": TokenSet(contrast="base")}
"""By name."""


def kept_tokens(
    name: str,
    model: Any,
    tokenizer: Any,
    folder: Path,
    count: int,
    base: str | None,
    bars: Progress | None = None,
) -> SafetyTokens:
    """The safety tokens of a set, from the folder if they are there.

    Args:
        name: Of `TOKEN_SETS`.
        model: The aligned model.
        tokenizer: Its tokenizer.
        folder: Where they are kept.
        count: Prompts of each kind that they are chosen from.
        base: Path or hub id of the model before alignment, where it is known.
        bars: Called with (done, total, description).

    Raises:
        ConfigError: The model before alignment is wanted and not known.
    """
    path = folder / f"tokens-{name}.safetensors"
    if not path.is_file():
        wanted = TOKEN_SETS[name]
        against_base = wanted.contrast == "base"
        if against_base and base is None:
            raise ConfigError(
                "the base contrast needs the model before alignment",
                key="base_model",
                remedy="Name it with --base-model; it is known of --model smollm2, and with --align.",
            )
        before = (
            load_causal_lm(base, dtype=model.dtype, device=model.device) if against_base and base else None
        )
        chosen = select_safety_tokens(
            model,
            tokenizer,
            contrast=wanted.contrast,
            base_model=before,
            harmful=spread(harmful_prompts(), count),
            benign=None if against_base else spread(benign_prompts(), count),
            top_k=wanted.top_k,
            max_new_tokens=16,
            batch_size=32,
            progress=bars,
        )
        chosen.save(path)
    return SafetyTokens.load(path)
