"""What the model in training says at the response positions: read once, whichever terms ask."""

from __future__ import annotations

import logging
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pact_plugin.data.view import View
from pact_plugin.errors import ModelStructureError
from pact_plugin.model.head import LanguageHead, Readout, language_head
from pact_plugin.model.ranks import is_sharded, refuse_fsdp1
from pact_plugin.model.wrappers import text_config, unwrap

logger = logging.getLogger("pact_plugin")

_TRIED = 64
"""Positions at which the task's log-probabilities are compared with the head's, once."""


class Student:
    """Reads the model in training: beside the task's loss where it can, else through the language-model head.

    A task loss that has log p of the labels has read the head already (spec/PACT.md, clause C6.7). Those at another
    temperature, or of smoothed labels, are not used: they are compared with the head's own at the first positions seen.

    Args:
        model: The model in training.
        head: Its head.
        ids: The K safety tokens.
        chunk_size: Positions projected on the vocabulary at a time.
    """

    def __init__(self, model: nn.Module, head: LanguageHead, ids: tuple[int, ...], chunk_size: int) -> None:
        self.head, self.ids, self.chunk_size = head, ids, chunk_size
        self._model, self._usable, self._compared = model, True, False
        self._placed, self.vocabulary = dict[torch.device, Tensor](), _vocabulary(model)

    def require_same_head(self) -> None:
        """Refuse a model that got another head since, as by `resize_token_embeddings`, or that the first FSDP keeps.

        Raises:
            ModelStructureError: Its head is another module, or of another vocabulary; or FSDP has flattened it.
        """
        refuse_fsdp1(self._model)
        now = language_head(self._model).projection
        if unwrap(now) is not unwrap(self.head.projection) or _vocabulary(self._model) != self.vocabulary:
            raise ModelStructureError(
                "its language-model head was replaced or resized after the constraint was built",
                key="model",
                value=type(unwrap(self._model)).__name__,
                remedy="Resize embeddings, and put adapters on the head, before the constraint is attached.",
            )

    def device(self, given: Tensor | int | None = None) -> torch.device:
        """Where the model runs now: a trainer may move it after it was given to the constraint.

        Args:
            given: Of a batch, which is where the model runs while its parameters are offloaded to the host.
        """
        own = self.head.device
        return given.device if own.type == "cpu" and torch.is_tensor(given) else own

    def ids_on(self, device: torch.device) -> Int[Tensor, " K"]:
        """The safety tokens on a device, copied there once."""
        if device not in self._placed:
            self._placed[device] = torch.tensor(self.ids, device=device)
        return self._placed[device]

    def reading(self, view: View) -> Reading:
        """Of the positions of a forward pass."""
        given = view.label_logprobs
        if given is None or not (given.requires_grad or not _needs_gradient(view.hidden)):
            return Reading(self, view, None)
        if self._usable and not self._compared and len(view.host_positions):
            self._compare(view, given)
        return Reading(self, view, given if self._usable else None)

    @torch.no_grad()
    def _compare(self, view: View, given: Tensor) -> None:
        self._compared = True
        if is_sharded(self._model):  # the head may be gone again
            self._usable = False
            return
        hidden = view.positions.predecessors(view.hidden)[:_TRIED]
        labels = view.positions.own(view.labels)[:_TRIED]
        with view.autocast:
            own = self.head.readout(
                hidden, self.ids_on(hidden.device), labels, chunk_size=self.chunk_size
            ).label
            rounding = torch.finfo(self.head.projection(hidden[:1]).dtype).eps
        error = (own - given[:_TRIED]).abs().mean().item()
        self._usable = error <= rounding * own.abs().max().item() + 1e-4
        if not self._usable:
            logger.warning(
                "PACT: the task loss's log-probabilities differ from the model's by %.3g nats (another temperature?), "
                "so the constraint reads the language-model head itself.",
                error,
            )


class Reading:
    """The model in training at N response positions; every part is computed when it is first asked for."""

    def __init__(self, student: Student, view: View, label_logprobs: Float[Tensor, " N"] | None) -> None:
        self._student, self._view, self._given = student, view, label_logprobs

    @cached_property
    def labels(self) -> Int[Tensor, " N"]:
        """The response tokens themselves."""
        return self._view.positions.own(self._view.labels)

    @cached_property
    def label_logprobs(self) -> Float[Tensor, " N"]:
        """Log p of the labels, in nats, with gradient."""
        return self._readout.label if self._given is None else self._given

    @cached_property
    def safety(self) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"] | None]:
        """Log p of the safety tokens, in nats, and log r where the head was read, both with gradient."""
        student = self._student
        if self._given is None or not student.head.reads_rows:
            return self._readout.logprobs, self._readout.log_rest
        with self._view.autocast:  # the task's own, so that both round alike
            ids = student.ids_on(self._hidden.device)
            return student.head.beside(self._hidden, ids, self.labels, self._given), None

    def logits(self, ids: Int[Tensor, " J"]) -> Float[Tensor, "N J"]:
        """Logits of some tokens, with gradient."""
        return self._student.head.safety_logits(self._hidden, ids, chunk_size=self._student.chunk_size)

    @cached_property
    def _hidden(self) -> Float[Tensor, "N d"]:
        return self._view.positions.predecessors(self._view.hidden)

    @cached_property
    def _readout(self) -> Readout:
        student = self._student
        ids = student.ids_on(self._hidden.device)
        return student.head.readout(self._hidden, ids, self.labels, chunk_size=student.chunk_size)


def _needs_gradient(hidden: Tensor) -> bool:
    return hidden.requires_grad and torch.is_grad_enabled()


def _vocabulary(model: nn.Module) -> int | None:
    """As the model's configuration says it, whatever its weights are wrapped in."""
    size: int | None = getattr(text_config(model), "vocab_size", None)
    return size
