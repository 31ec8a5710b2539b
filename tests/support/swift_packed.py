"""A file for `--external_plugins`, for the tests: plain attention in the place of FlashAttention's GPU kernel.

ms-swift packs only with FlashAttention. The rows, their positions and all else are ms-swift's and transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel, modeling_utils


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal, within documents: positions begin again at 0."""
    rows, _, length, _ = query.shape
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    allowed = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, length, length)
    if position_ids is not None:
        document = (position_ids == 0).cumsum(-1)
        allowed = allowed & (document[:, None, :, None] == document[:, None, None, :])
    if attention_mask is not None:
        real = attention_mask[:, None, None, :].bool()
        allowed = allowed & (real | torch.eye(length, dtype=torch.bool))
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=scaling
    )
    return output.transpose(1, 2).contiguous(), None


# transformers looks for the kernel before it looks up the function.
modeling_utils.lazy_import_flash_attention = lambda *args, **kwargs: None
AttentionInterface.register("flash_attention_2", attention)
PreTrainedModel._flash_attn_can_dispatch = lambda *args, **kwargs: True
