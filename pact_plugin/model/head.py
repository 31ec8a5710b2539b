"""Final hidden states -> log-probabilities of the safety tokens, never the full logits (clause C6 of spec/PACT.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pact_plugin.errors import ModelStructureError
from pact_plugin.model.ranks import ZERO3_HEAD, chunks, gathered, is_partitioned
from pact_plugin.model.readout import FrozenHead, TokensOfEach, read_chunks, read_frozen
from pact_plugin.model.wrappers import in_type_of, text_config, unwrap

_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers, as transformers names them, that keep documents apart by their positions under flash attention."""


@dataclass(frozen=True)
class Readout:
    """What a head says of N positions, in nats."""

    logprobs: Float[Tensor, "N K"]
    """log p(k) of the safety tokens under the whole vocabulary."""
    log_rest: Float[Tensor, " N"]
    """log r, the log-probability of every other token together."""
    label: Float[Tensor, " N"] | None
    """log p of the label; None without labels."""


@dataclass(frozen=True)
class LanguageHead:
    """A causal language model as a decoder, a projection and what the model does to its logits.

    Args:
        decoder: Module below the head; its output has `last_hidden_state` [B, T, d].
        projection: The head itself, [N, d] -> [N, V].
        scale: Factor of the logits (Cohere, Granite).
        softcap: Bound of the logits, cap · tanh(logits / cap), after the factor (Gemma 2).
    """

    decoder: nn.Module
    projection: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int | None:
        """V; None where the projection does not tell it."""
        # PEFT's own copy of a tied head names its two sizes the wrong way round.
        inner, outer = (getattr(self.projection, name, None) for name in ("in_features", "out_features"))
        weight = getattr(self.projection, "weight", None)
        swapped = weight is not None and tuple(weight.shape) == (inner, outer)
        return inner if swapped else outer

    def logits(
        self, hidden: Float[Tensor, "N d"], project: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """[N, d] -> [N, V] logits in at least float32, as the model computes them."""
        raw = (project or self.projection)(in_type_of(self.projection, hidden))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw

    def safety_logits(
        self,
        hidden: Float[Tensor, "N d"],
        ids: Int[Tensor, " K"],
        *,
        chunk_size: int = 256,
        project: Callable[[Tensor], Tensor] | None = None,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "N K"]:
        """Logits of the safety tokens alone; a plain linear head multiplies only their rows.

        Args:
            hidden: Final hidden states at the positions that predict.
            ids: The safety tokens.
            chunk_size: Positions per chunk where the head is not plain and all logits are needed.
            project: In place of a projection that is not plain (a reference's own head).
            replaced: In place of the `weight` [V, d] and the `bias` [V] of a plain linear head, those that are there.

        Raises:
            ModelStructureError: DeepSpeed has partitioned a head in training.
        """
        if type(self.projection) is nn.Linear:
            self._require_rows(hidden)
            with gathered(self.projection):
                own = {"weight": self.projection.weight, "bias": self.projection.bias, **(replaced or {})}
                rows, bias = (None if one is None else one[ids] for one in (own["weight"], own["bias"]))
            return self.logits(hidden, lambda states: F.linear(states, rows, bias))
        parts = chunks(hidden, chunk_size, self.projection)
        return torch.cat([self.logits(states, project).index_select(1, ids) for states in parts])

    def readout(
        self,
        hidden: Float[Tensor, "N d"],
        tokens: Int[Tensor, " K"] | TokensOfEach,
        labels: Int[Tensor, " N"] | None = None,
        *,
        chunk_size: int = 256,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Readout:
        """Log-probabilities at N positions, `chunk_size` positions at a time.

        The memory is that of one chunk. Under autograd the backward pass computes each chunk's logits again, or needs
        none, where the head is linear and not trained. Formulas: `model/readout.py`.

        Args:
            hidden: Final hidden states at the positions that predict.
            tokens: That are read, the same at all positions or those of each; fewer than the vocabulary.
            labels: The tokens predicted.
            chunk_size: Positions per chunk.
            project: Replaces the projection (a reference's own head).
        """

        def logits(states: Tensor) -> Tensor:
            return self.logits(states, project)

        projection = self.projection
        differentiated = hidden.requires_grad and torch.is_grad_enabled()
        if project is None and differentiated and _is_frozen_linear(projection):
            frozen = FrozenHead(logits, self._slope, projection)
            read = read_frozen(frozen, hidden, tokens, labels, chunk_size)
        else:
            read = read_chunks(logits, projection, hidden, tokens, labels, chunk_size)
        inside = read.safety.logsumexp(1)
        offset = F.logsigmoid(inside - read.outside) - inside  # log p(S) - a
        log_rest = F.logsigmoid(read.outside - inside)
        label = None if read.label is None else read.label + offset
        return Readout(read.safety + offset[:, None], log_rest, label)

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return next(self.decoder.parameters()).device

    @property
    def keeps_documents_apart(self) -> bool:
        """Whether the decoder keeps documents of one row apart without padding, by their positions.

        Flash attention does; layers of a state-space model or of linear attention do not. These convolve, or the
        configuration names them.
        """
        config = getattr(self.decoder, "config", None)
        flash = "flash" in str(getattr(config, "_attn_implementation", ""))
        kinds = set(getattr(config, "layer_types", None) or ())
        convolves = any(isinstance(module, nn.Conv1d) for module in self.decoder.modules())
        return flash and not convolves and kinds <= _ATTENDING

    def _require_rows(self, hidden: Tensor) -> None:
        if (
            hidden.requires_grad
            and is_partitioned(self.projection)
            and not _is_frozen_linear(self.projection)
        ):
            raise ModelStructureError(
                ZERO3_HEAD,
                key="deepspeed",
                remedy="Train an adapter, or use ZeRO stage 2 or FSDP2.",
            )

    def _slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the logits by what the projection returns."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap) ** 2)


def _is_frozen_linear(projection: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is plain, whole on this rank (tensor parallelism makes a DTensor of it) and not trained."""
    plain = type(projection) is nn.Linear and not hasattr(projection.weight, "full_tensor")
    return plain and not any(parameter.requires_grad for parameter in projection.parameters())


def language_head(model: nn.Module) -> LanguageHead:
    """Take a causal language model apart; PEFT and distributed wrappers are looked through.

    Raises:
        ModelStructureError: No decoder or no output embeddings were found.
    """
    base = unwrap(model)
    decoder = _decoder(base)
    if decoder is None:
        raise ModelStructureError(
            "the decoder below the language-model head was not found",
            key="model",
            value=type(base).__name__,
            remedy="Use a causal language model whose `base_model` or `get_decoder()` is its decoder.",
        )
    projection = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if not isinstance(projection, nn.Module):
        raise ModelStructureError(
            "the language-model head was not found",
            key="model",
            value=type(base).__name__,
            remedy="Use a causal language model with `get_output_embeddings()`.",
        )
    scale, softcap = _logit_settings(text_config(base))
    return LanguageHead(decoder=decoder, projection=projection, scale=scale, softcap=softcap)


def _decoder(base: Any) -> nn.Module | None:
    """What is below the head, by transformers' names; Llama 4 has an unusual one, and OPT calls an inner module."""
    found = [getattr(base, "base_model", None)]
    if hasattr(base, "get_decoder"):
        found.append(base.get_decoder())
    found.append(getattr(base, "model", None))
    decoder = next((one for one in found if isinstance(one, nn.Module) and one is not base), None)
    return getattr(decoder, "decoder", decoder)


def _logit_settings(text: Any) -> tuple[float, float | None]:
    """Factor and bound of the logits, under the names that model families give them."""
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(text, name, None) is not None:
            scale = float(getattr(text, name))
            break
    divisor = getattr(text, "logits_scaling", None)
    if divisor is not None:
        scale = float(divisor) if getattr(text, "model_type", "") == "hyperclovax" else 1.0 / float(divisor)
    return scale, getattr(text, "final_logit_softcapping", None)
