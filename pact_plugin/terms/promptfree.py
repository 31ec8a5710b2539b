"""The published objective's prompt-free view: what it begins with and how far it reaches (spec/PACT.md, clause C3)."""

from __future__ import annotations

import math
from typing import Any

from pact_plugin.errors import ConfigError

GATE_CLOSED = 1e-4
"""Where c is at most this, it is taken as 0 and the prompt-free reference is not needed."""


def assistant_header(tokenizer: Any, text: str | None) -> list[int]:
    """Token ids that come before a response: the given text, else what the chat template adds for a generation.

    Raises:
        ConfigError: No text was given and the tokenizer has no chat template that opens an assistant turn.
    """
    if text is not None:
        ids = tokenizer.encode(text, add_special_tokens=False)
    elif getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": "Hello"}]
        closed = tokenizer.apply_chat_template(turn, tokenize=False)
        opened = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = (
            tokenizer.encode(opened[len(closed) :], add_special_tokens=False)
            if opened.startswith(closed)
            else []
        )
        bos = getattr(tokenizer, "bos_token", None)
        if ids and bos and closed.startswith(bos):
            ids = [tokenizer.bos_token_id, *ids]
    else:
        ids = []
    if not ids:
        raise ConfigError(
            "no assistant header: the text before a response, without a prompt, is not known",
            key="published.assistant_header",
            value=text,
            remedy="Set it to the text that opens an assistant turn, or give the tokenizer a chat template.",
        )
    return list(ids)


def gate_end(prefix: int, decay: float, boost: float) -> int:
    """The first t from which the gate stays below `GATE_CLOSED`: its bound is boost · f(t) (clause C3.9)."""
    if boost <= GATE_CLOSED:
        return 0
    if decay == 0:
        return prefix
    return math.ceil(prefix + decay * math.log(boost / GATE_CLOSED))
