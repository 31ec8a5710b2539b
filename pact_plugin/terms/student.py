"""What the model in training says at the response positions, where a term asks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pact_plugin.data.positions import ResponsePositions
from pact_plugin.data.view import View
from pact_plugin.errors import ModelStructureError
from pact_plugin.model.head import LanguageHead, Readout, language_head
from pact_plugin.model.ranks import needs_every_rank, refuse_fsdp1
from pact_plugin.model.transfer import to_device
from pact_plugin.model.wrappers import text_config, unwrap


class Student:
    """The model in training and its language-model head, and whether they still are what they were.

    Args:
        model: The model in training.
        head: Its head.
        ids: The K safety tokens.
        chunk_size: Positions projected on the vocabulary at a time.
    """

    def __init__(self, model: nn.Module, head: LanguageHead, ids: tuple[int, ...], chunk_size: int) -> None:
        self.head, self.ids, self.chunk_size = head, ids, chunk_size
        self._model = model
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


class Reading:
    """The model in training at the N response positions of a forward pass; each part is computed when asked for."""

    def __init__(self, student: Student, view: View) -> None:
        self._student, self._view = student, view

    def label_logprobs(self, where: ResponsePositions) -> Float[Tensor, " M"]:
        """Log p of the labels at some positions, in nats, with gradient.

        Args:
            where: M of the positions, on the host.
        """
        view = self._view
        hidden = where.to(view.hidden.device).predecessors(view.hidden)
        if not len(where) and not needs_every_rank(self._student.head.projection):
            return hidden.sum(1)  # of no position: a head in training would get a dense gradient of zeros
        labels = to_device(where.own(view.host["labels"]), hidden.device)
        with view.autocast:  # the task's own, so that both round alike
            label = self._read(hidden, labels).label
        assert label is not None
        return label

    @property
    def safety(self) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"]]:
        """Log p of the safety tokens, and log r, in nats, both with gradient."""
        read = self._read(self._hidden)  # in the precision around it, as the reference's own
        return read.logprobs, read.log_rest

    def logits(self, ids: Int[Tensor, " J"]) -> Float[Tensor, "N J"]:
        """Logits of some tokens, with gradient."""
        return self._student.head.safety_logits(self._hidden, ids, chunk_size=self._student.chunk_size)

    @property
    def _hidden(self) -> Float[Tensor, "N d"]:
        return self._view.positions.predecessors(self._view.hidden)

    def _read(self, hidden: Float[Tensor, "M d"], labels: Int[Tensor, " M"] | None = None) -> Readout:
        student = self._student
        return student.head.readout(
            hidden, student.ids_on(hidden.device), labels, chunk_size=student.chunk_size
        )


def _vocabulary(model: nn.Module) -> int | None:
    """As the model's configuration says it, whatever its weights are wrapped in."""
    size: int | None = getattr(text_config(model), "vocab_size", None)
    return size
