"""What the aligned model predicts at the anchors, read once for a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.data.documents import Document
from pact_plugin.data.generation import Pair, longest_first
from pact_plugin.model.ranks import broadcast_object
from pact_plugin.reference.columns import Buckets
from pact_plugin.reference.passes import Passes
from pact_plugin.reference.pool import BATCH


class AlignedAnchors:
    """The buckets at the answers of all anchors, on the host.

    A source that lasts is read in the first step, in the precision that this runs in; any other at once.

    Args:
        passes: Of the aligned model, which ask for buckets; let go of once the anchors have been read.
        anchors: Token ids of each prompt and its answer.
        lasting: Whether the source still is the aligned model after the first step.
    """

    def __init__(self, passes: Passes, anchors: Sequence[Pair], *, lasting: bool) -> None:
        self.documents = [_document(pair) for pair in anchors]
        (self._buckets,) = passes.columns
        self._passes: Passes | None = passes
        self._packed: tuple[Tensor, ...] = ()
        if not lasting:
            self._keep(broadcast_object(self._predicted(passes)))

    def read(self, autocast: AbstractContextManager[Any], device: torch.device) -> None:
        """Read them, unless they have been read.

        Args:
            autocast: The step's precision.
            device: Of the model in training.
        """
        if self._passes is not None:
            self._keep(self._predicted(self._passes, autocast, device))

    def at(self, chosen: Sequence[int]) -> Buckets:
        """At some of them, once they have been read.

        Args:
            chosen: Numbers of the anchors.
        """
        packed = torch.cat([self._packed[number] for number in chosen])
        return Buckets.of(packed, self._buckets.top_k)

    def _predicted(
        self,
        passes: Passes,
        autocast: AbstractContextManager[Any] | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, "R W"]:
        """The buckets of all R positions; documents of like length are read together."""
        found: dict[int, Tensor] = {}
        with passes.source.session(device):
            for places in longest_first([document.tokens for document in self.documents], BATCH):
                group = [self.documents[place] for place in places]
                read = passes.of_documents(group, lambda inputs: passes.source.hidden((), inputs, autocast))
                found.update((place, one[self._buckets]) for place, one in zip(places, read, strict=True))
        return torch.cat([found[place] for place in range(len(self.documents))])

    def _keep(self, packed: Float[Tensor, "R W"]) -> None:
        self._packed = packed.split([len(document.columns) for document in self.documents])
        self._passes = None


def _document(pair: Pair) -> Document:
    prompt, answer = pair
    index = np.arange(len(answer))
    return Document(b"", np.asarray(prompt + answer, dtype=np.int64), len(prompt) + index, index)
