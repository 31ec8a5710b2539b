"""Whether a head is read as the model reads it."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pact_plugin.errors import ModelStructureError, NonFiniteError
from pact_plugin.model.head import LanguageHead
from pact_plugin.model.wrappers import unwrap


@torch.no_grad()
def check_head(model: nn.Module, head: LanguageHead, token_ids: Int[Tensor, " n"]) -> None:
    """Compare with the model's own logits on a few tokens, so that an unknown kind of head is never misread.

    Raises:
        ModelStructureError: The logits differ by more than rounding.
        NonFiniteError: They are NaN.
    """
    tokens = token_ids[None]
    own = model(input_ids=tokens).logits[0].to(torch.float32)
    if bool(own.isnan().any()):
        raise NonFiniteError(
            "the model predicts NaN",
            key="model",
            value=type(unwrap(model)).__name__,
            remedy="Check its weights and precision: float16 overflows where bfloat16 does not.",
        )
    hidden = head.decoder(input_ids=tokens).last_hidden_state[0]
    ours = head.logits(hidden.to(own.device)).to(torch.float32)
    if ours.shape == own.shape:
        error = (ours - own).abs().max().item()
        if error <= 8 * torch.finfo(hidden.dtype).eps * own.abs().max().item() + 1e-4:
            return
        problem = f"logits read from the hidden states differ from the model's own by {error:.3g}"
    else:
        problem = f"logits read from the hidden states have shape {tuple(ours.shape)}, not {tuple(own.shape)}"
    raise ModelStructureError(
        problem,
        key="model",
        value=type(unwrap(model)).__name__,
        remedy="This architecture transforms its logits in a way pact-plugin does not know: please report it.",
    )
