"""A forward pass of the model in training: its final hidden states, seen from outside, and where responses are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pact_plugin.data.documents import Document, HostBatch, documents_of
from pact_plugin.data.positions import ResponsePositions, positions_of
from pact_plugin.data.responses import Responses
from pact_plugin.errors import HiddenStatesNotSeenError, ModelStructureError, ShapeError
from pact_plugin.model.transfer import to_device
from pact_plugin.model.wrappers import ambient_autocast


@dataclass(frozen=True)
class View:
    """One forward pass of the model in training."""

    hidden: Float[Tensor, "B T d"]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    """What the decoder was called with; the reference is called with the same."""
    positions: ResponsePositions
    """N response positions, those that any term looks at."""
    host: Mapping[str, Tensor]
    """Ids, labels and boundaries on the host."""
    host_positions: ResponsePositions
    autocast: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """As it was inside of the decoder."""
    _documents: dict[int | None, list[Document]] = field(default_factory=dict)

    def documents(self, first: int | None) -> list[Document]:
        """Those with response positions, in the order of the batch, up to their last position with t < `first`.

        Args:
            first: First tokens of each response; None for all.
        """
        if first not in self._documents:
            self._documents[first] = documents_of(self.host, self.host_positions.among(first))
        return self._documents[first]

    @cached_property
    def responses(self) -> Responses:
        """Those whose first token is a response position, in the order of the batch."""
        return Responses.of(self.host["labels"], self.host_positions)

    def within(self, first: int | None) -> Int[Tensor, " M"] | slice:
        """Which of the N positions are among the first tokens of their response: all of them as a slice.

        Args:
            first: How many tokens at the start of each response. None: all.
        """
        if first is None or not bool((self.host_positions.index >= first).any()):
            return slice(None)
        kept = torch.nonzero(self.host_positions.index < first)[:, 0]
        return to_device(kept, self.hidden.device)


@dataclass(frozen=True)
class _Seen:
    """The decoder's call."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: AbstractContextManager[Any]


class Watch:
    """Sees forward passes by a hook on the decoder.

    Args:
        decoder: Module below the language-model head.
        first: How many tokens at the start of each response are looked at. None: all.
    """

    def __init__(self, decoder: nn.Module, first: int | None) -> None:
        self._decoder, self._first = decoder, first
        self._seen: _Seen | None = None
        self._host: HostBatch | None = None

    @contextmanager
    def forward(self, batch: Mapping[str, Any] | None) -> Iterator[None]:
        """Keep the first forward pass inside; with its batch, copy that to the host before."""
        self._seen = None
        self._host = None if batch is None else HostBatch(batch)

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._seen is None:
                hidden = output.last_hidden_state
                self._seen = _Seen(hidden, args, kwargs, ambient_autocast(hidden.device))

        handle = self._decoder.register_forward_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def forget(self) -> None:
        """Let go of what was seen."""
        self._seen = self._host = None

    def view(self, batch: Mapping[str, Any], *, train: bool) -> View:
        """What was seen, once.

        Args:
            batch: The one that was watched.
            train: Whether there has to be a gradient.

        Raises:
            HiddenStatesNotSeenError: Nothing was seen, or without gradient in training.
            ModelStructureError: The decoder was called with embeddings.
            ShapeError: The batch is another one.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            raise HiddenStatesNotSeenError(
                "the decoder's final hidden states were not seen in this step",
                key="watch",
                remedy="Run the model's forward pass inside `constraint.watch()`, once for each call of `loss`; of a "
                "compiled model from the first on, or after `torch._dynamo.reset()`.",
            )
        _check(seen, train)
        host = self._on_host(batch, seen)
        positions = positions_of(host, self._first)
        if seen.hidden.shape[:2] != batch["labels"].shape:
            raise ShapeError(
                f"the hidden states have shape {tuple(seen.hidden.shape[:2])}",
                key="labels",
                value=tuple(batch["labels"].shape),
                remedy="Pass the batch that was watched; virtual tokens and sequence parallelism are not supported.",
            )
        return View(
            hidden=seen.hidden,
            args=seen.args,
            kwargs=seen.kwargs,
            positions=positions.to(seen.hidden.device),
            host=host,
            host_positions=positions,
            autocast=seen.autocast,
        )

    def _on_host(self, batch: Mapping[str, Any], seen: _Seen) -> Mapping[str, Tensor]:
        """Ids, labels and boundaries of a batch; those copied before the forward pass, if it is the same batch."""
        copied, self._host = self._host, None
        if copied is None or copied.labels is not batch.get("labels"):
            copied = HostBatch(batch)
        host = copied.tensors()
        if "shift_labels" in batch:
            host["shift_labels"] = batch["shift_labels"]
        if "input_ids" not in host:
            ids = seen.args[0] if seen.args else seen.kwargs["input_ids"]
            host |= HostBatch({"input_ids": ids}).tensors()
        return host


def _check(seen: _Seen, train: bool) -> None:
    if train and torch.is_grad_enabled() and not seen.hidden.requires_grad:
        raise HiddenStatesNotSeenError(
            "the hidden states carry no gradient, so the constraint would have no effect",
            key="model",
            remedy="Train some parameter of the decoder, and run its forward pass with gradients enabled.",
        )
    if seen.kwargs.get("inputs_embeds") is not None:
        raise ModelStructureError(
            "the decoder was called with embeddings, which the reference cannot be given",
            key="inputs_embeds",
            remedy="Pass `input_ids`.",
        )
