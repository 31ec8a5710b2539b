"""The published objective's prompt-free view: assistant header plus the response so far (spec/PACT.md, clause C3)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pact_plugin.errors import ConfigError
from pact_plugin.responses import ResponsePositions


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


def prompt_free_batch(
    input_ids: Int[Tensor, "B T"], positions: ResponsePositions, header: list[int]
) -> tuple[dict[str, Any], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """One row per response: the header, then the response but its last token, padded on the right.

    Returns:
        The decoder's inputs [R, H + L - 1], and for each of the N positions the row and the column whose hidden
        state predicts it. Two host synchronisations per batch.
    """
    responses, row = torch.unique(positions.response, return_inverse=True)
    first = input_ids.new_zeros(len(responses)).scatter_(0, row, positions.column - positions.index)
    source = input_ids.new_zeros(len(responses)).scatter_(0, row, positions.row)
    length = input_ids.new_zeros(len(responses)).scatter_reduce_(0, row, positions.index, "amax")
    longest = int(length.max()) if len(responses) else 0
    offset = torch.arange(longest, device=input_ids.device)
    column = (first[:, None] + offset).clamp(max=input_ids.shape[1] - 1)
    before = input_ids[source[:, None], column]
    heads = torch.tensor(header, dtype=input_ids.dtype, device=input_ids.device).expand(len(responses), -1)
    real = torch.cat([torch.ones_like(heads), (offset < length[:, None]).to(heads.dtype)], dim=1)
    batch = {"input_ids": torch.cat([heads, before], dim=1), "attention_mask": real, "use_cache": False}
    return batch, row, positions.index + len(header) - 1
