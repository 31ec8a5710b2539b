"""The stored reference beside a training run: filled before its first step, looked up in every one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pact_plugin.config import PactConfig
from pact_plugin.data.documents import Document
from pact_plugin.data.view import View
from pact_plugin.errors import ConfigError, ReferenceModelError, StoreError
from pact_plugin.model.fingerprint import model_fingerprint
from pact_plugin.model.ranks import is_sharded, of_first_rank
from pact_plugin.reference.fill import fill, unseen
from pact_plugin.reference.header import Header
from pact_plugin.reference.passes import Aligned, Passes
from pact_plugin.reference.table import Store
from pact_plugin.tokens.safety_tokens import SafetyTokens

logger = logging.getLogger("pact_plugin")

_GONE = "the model is no longer the aligned one that could compute it"


class StoredReference:
    """The aligned model's predictions on disk, and the aligned model itself as long as there is one.

    Args:
        config: Settings; `store` names the folder.
        tokens: The safety tokens whose predictions are stored.
        passes: What computes them.
        model: The model in training, still the aligned one.
        tokenizer: For messages.

    Raises:
        ConfigError: No folder is named.
        StoreError: The folder holds something else.
    """

    def __init__(
        self, config: PactConfig, tokens: SafetyTokens, passes: Passes, model: nn.Module, tokenizer: Any
    ) -> None:
        if config.store is None:
            raise ConfigError(
                "no folder is named for the stored predictions", key="store", remedy="Name one with `store`."
            )
        self._passes, self._tokenizer, self._warned = passes, tokenizer, False
        self._lasting = passes.reference.lasting
        self._fingerprint = of_first_rank(model_fingerprint(model, base_only=self._lasting))
        published = config.objective == "published"
        header = Header(
            model=self._fingerprint.values,
            tokenizer=tokens.fingerprint,
            tokens=tokens.digest,
            count=len(tokens),
            objective=config.objective,
            settings={"header": list(passes.header or []), "gate_end": passes.end} if published else {},
            first_n=config.first_tokens,
        )
        self.store = Store(config.store, header)

    def at_hand(self, begun: bool) -> bool:
        """Whether the aligned model can be run: always with an adapter to switch off, else until the first step."""
        return self._lasting or not begun

    def fill(
        self,
        batches: Iterable[Mapping[str, Any]],
        model: nn.Module,
        *,
        begun: bool,
        tokens_per_pass: int,
        progress: bool,
    ) -> None:
        """See `PactConstraint.fill`."""
        if not self.at_hand(begun):
            for number, new in enumerate(unseen(self.store, batches)):
                if new:
                    raise self._missing(new[0], f"a document of batch {number}")
            return
        if not self._lasting:
            self._require_unchanged(model)
        with self._passes.reference.session():
            fill(self.store, batches, self._passes, model, tokens_per_pass, progress)

    def aligned(self, view: View, *, train: bool, begun: bool) -> Aligned | None:
        """The predictions at a forward pass's positions; None where an evaluation batch has some that are not stored.

        Raises:
            StoreError: In training a document is neither stored nor can it be computed.
        """
        found = self.store.fetch(view.documents, view.hidden.device)
        if isinstance(found, Aligned):
            return found
        sharded = is_sharded(self._passes.reference.model)  # the other ranks would not join in
        if (self._lasting or not (train or begun)) and not sharded:
            if not self._warned and train:
                logger.warning(
                    "PACT reference: some documents are not stored; they are computed in each step."
                )
                self._warned = True
            return self._passes.of_view(view)
        if not train:
            return None
        raise self._missing(
            view.documents[found[0]],
            f"document {found[0]} of the batch",
            "its parameters are sharded over the ranks, of which only some miss it" if sharded else _GONE,
        )

    def _require_unchanged(self, model: nn.Module) -> None:
        """Refuse a model whose weights are not those that the constraint was built with."""
        if is_sharded(model):
            return
        now = model_fingerprint(model)
        if now.structure == self._fingerprint.structure and now.values != self._fingerprint.values:
            raise ReferenceModelError(
                "the model's weights have changed since the constraint was built, so it is no longer the aligned model",
                key="reference",
                value="stored",
                remedy="Fill the store before training, and before a checkpoint is loaded.",
            )

    def _missing(self, document: Document, which: str, why: str = _GONE) -> StoreError:
        text = self._tokenizer.decode(document.tokens[:24].tolist())
        return StoreError(
            f"{which} is not stored ({text!r}), and {why}",
            key="store",
            value=str(self.store.folder),
            remedy="Fill the store with all training data before the first step, or use another `reference`.",
        )
