"""The reference beside a run: looked up in a table that is filled before the first step, or run in each step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from pact_plugin.data.documents import Document
from pact_plugin.data.generation import device_of
from pact_plugin.data.view import View
from pact_plugin.errors import ConfigError, ReferenceModelError, StoreError
from pact_plugin.model.fingerprint import Fingerprint, model_fingerprint
from pact_plugin.model.ranks import broadcast_object, is_sharded
from pact_plugin.reference.choose import Choice
from pact_plugin.reference.columns import Aligned, Columns, furthest
from pact_plugin.reference.fill import fill, unseen
from pact_plugin.reference.header import Header, described, digest_of
from pact_plugin.reference.passes import Passes
from pact_plugin.reference.source import Source
from pact_plugin.reference.table import Table

logger = logging.getLogger("pact_plugin")

_GONE = "the model is no longer the aligned one that could compute what is missing"
_SHARDED = "the model's parameters are sharded over the ranks, of which only some lack documents"


class Reference:
    """The aligned model's columns at the positions of a batch.

    Args:
        choice: Where they come from.
        source: What computes them; let go of once it is not needed any more.
        columns: What is asked; none where only the start of a run asks the aligned model.
        chunk_size: Positions projected on the vocabulary at a time.
        tokenizer: The model's, for messages.
        tokenizer_fingerprint: The tokenizer's fingerprint (C9.3), for the table's header.

    Raises:
        StoreError: The table's folder holds something else.
    """

    def __init__(
        self,
        choice: Choice,
        source: Source,
        columns: Sequence[Columns],
        *,
        chunk_size: int,
        tokenizer: Any,
        tokenizer_fingerprint: str,
    ) -> None:
        self.choice, self._tokenizer, self._warned = choice, tokenizer, False
        self._columns, self._begun = tuple(columns), False
        self._first = furthest(columns)
        self._passes = Passes(source, columns, chunk_size) if columns else None
        self.table: Table | None = None
        self._fingerprint: Fingerprint | None = None
        if choice.table is not None:
            self._fingerprint = broadcast_object(source.fingerprint())
            header = Header.of(self._fingerprint.values, tokenizer_fingerprint, columns)
            self.table = Table(choice.table, header, columns)

    def begin(self) -> None:
        """Called when the first step begins, or a run is resumed. Lets go of a model that is not needed any more."""
        self._begun = True
        if not self.choice.lasting:
            self._passes = None  # and with them a second model

    @property
    def asked(self) -> str | None:
        """Digest of the columns; None where there are none."""
        return digest_of(described(self._columns)) if self._columns else None

    @property
    def digest(self) -> str | None:
        """Of the table's header, which names it; None where there is no table."""
        return None if self.table is None else self.table.header.digest

    @property
    def can_fill(self) -> bool:
        """Whether `fill` can compute what the table lacks."""
        return self.table is not None and self._at_hand

    @property
    def _at_hand(self) -> bool:
        """Whether the aligned model can be run: always with an adapter to switch off, else until the first step."""
        return self._passes is not None and (self.choice.lasting or not self._begun)

    def fill(
        self, batches: Iterable[Mapping[str, Any]], *, model: nn.Module, tokens_per_pass: int, progress: bool
    ) -> None:
        """See `Constraint.fill`."""
        if self.table is None:
            raise ConfigError(
                f"there is no table to fill (reference: {self.choice.name})",
                key="advanced.store",
                remedy="Name a folder with `advanced: {store: ...}`, or do not call `fill`.",
            )
        if not self._at_hand:
            for number, new in enumerate(unseen(self.table, batches)):
                if new:
                    raise self._missing(new[0], f"a document of batch {number}")
            return
        assert self._passes is not None
        source = self._passes.source
        if source.kind == "itself":
            self._require_unchanged(model, base_only=source.base_only)
        aligned = source.model if source.kind == "model" else model
        with source.session(device_of(model)):
            fill(self.table, batches, self._passes, aligned, tokens_per_pass, progress)

    def aligned(self, view: View, *, train: bool) -> Aligned | None:
        """The columns at a forward pass's positions; None where an evaluation batch has some that are not known.

        Raises:
            ReferenceModelError: Weights have begun to train that the aligned model shares.
            StoreError: In training a document is neither in the table nor can it be computed.
        """
        if not self._columns:
            return {}
        if self.table is None:
            return self._computed(view)
        documents = view.documents(self._first)
        found = self.table.fetch(documents, view.hidden.device)
        if found is not None:
            return found
        if self._passes is not None and not self._sharded and (self.choice.lasting or not train):
            if not self._warned and train:
                logger.warning(
                    "PACT reference: some documents are not in the table; each step computes them."
                )
                self._warned = True
            return self._computed(view)
        if not train:
            return None
        first = self.table.lacks(documents)[0]
        raise self._missing(first, f"document {documents.index(first)} of the batch")

    def _computed(self, view: View) -> Aligned:
        """By a pass of the aligned model over what the view has seen."""
        assert self._passes is not None
        self._passes.source.require_kept()
        return self._passes.of_view(view)

    @property
    def _sharded(self) -> bool:
        """Whether the aligned model is at hand, but only if all ranks run it, and others would not join in."""
        return self._passes is not None and is_sharded(self._passes.source.model)

    @property
    def obstacle(self) -> str:
        """Why what the table lacks is not computed, as a clause."""
        return _SHARDED if self._sharded else _GONE

    def _require_unchanged(self, model: nn.Module, *, base_only: bool) -> None:
        """Refuse a model whose weights are not those that the constraint was built with."""
        if is_sharded(model):
            return
        now, before = model_fingerprint(model, base_only=base_only), self._fingerprint
        if before is not None and now.structure == before.structure and now.values != before.values:
            raise ReferenceModelError(
                "the model's weights have changed since the constraint was built, so it is no longer the aligned model",
                key="reference",
                remedy="Fill the table before training, and before a checkpoint is loaded.",
            )

    def _missing(self, document: Document, which: str) -> StoreError:
        text = self._tokenizer.decode(document.tokens[:24].tolist())
        folder = None if self.table is None else str(self.table.folder)
        return StoreError(
            f"{which} is not in the table ({text!r}), and {self.obstacle}",
            key="advanced.store",
            value=folder,
            remedy="Fill the table with all training data before the first step, or use data whose rows stay the same. "
            "A run that is resumed in another folder needs the first one's table: name that as `advanced.store`. "
            "To train the same model on other data, attach a new trainer, with `reference: PATH`.",
        )
