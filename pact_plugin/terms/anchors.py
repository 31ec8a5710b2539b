"""Anchors: prompts without labels at which the model in training is held to the aligned one's own answers.

In each optimiser step a few of them are constrained, so that the constraint also holds where the fine-tuning data says
nothing (clause C10 of spec/PACT.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pact_plugin.config import PactConfig
from pact_plugin.data.documents import Document, full_context, to_device
from pact_plugin.data.generation import Pair
from pact_plugin.errors import ConfigError, PactError
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.head import LanguageHead
from pact_plugin.model.ranks import of_first_rank, rank, ranks
from pact_plugin.reference.fill import computed
from pact_plugin.reference.passes import Aligned, Passes
from pact_plugin.terms.anchor_prompts import BATCH, anchor_answers, turns

_SHIFT = 0.618
"""Part of the pool between micro-batches that nobody has counted: the golden ratio keeps any number of them apart."""


class Anchors:
    """The anchors of a run, and what the aligned model predicts at them.

    Args:
        config: Settings; `anchors` of them in each optimiser step.
        tokenizer: The model's tokenizer.
        head: The model in training.
        passes: What computes the aligned model's predictions.

    Raises:
        ConfigError: The prompts cannot be read, or the aligned model answers none of them.
    """

    def __init__(self, config: PactConfig, tokenizer: Any, head: LanguageHead, passes: Passes) -> None:
        self.per_step = config.anchor_count
        self._head, self._passes = head, passes
        self._aligned: list[Aligned] | None = None
        self._step, self._micro_batch = 0, 0
        kinds = anchor_answers(config, tokenizer, passes.reference, passes.ids)
        harmful, benign = kinds.get("harmful", []), kinds.get("benign", [])
        self.documents = [_document(pair) for pair in (*harmful, *benign)]
        self.turns = turns(len(harmful), len(benign), config.anchor_ratio)
        if not passes.reference.lasting:
            self._aligned = of_first_rank(self._predicted(None))

    def divergence(
        self, step: int, micro_batches: int, autocast: AbstractContextManager[Any]
    ) -> Float[Tensor, ""]:
        """Mean divergence at the positions of the next micro-batch's anchors, in nats, with gradient.

        Args:
            step: Optimiser step, from 1.
            micro_batches: Of this step on this rank.
            autocast: The precision that the model in training runs in.
        """
        self._micro_batch = self._micro_batch + 1 if step == self._step else 0
        self._step = step
        if self._aligned is None:
            self._aligned = self._predicted(autocast)
        chosen = self.chosen(step, self._micro_batch, rank(), micro_batches)

        def call(inputs: dict[str, Any]) -> Tensor:
            with autocast:
                return self._head.decoder(**inputs).last_hidden_state

        hidden = self._passes.states_of([full_context(self.documents[i]) for i in chosen], call)
        unused = torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device)
        student = self._head.readout(hidden, self._passes.ids, unused, chunk_size=self._passes.chunk_size)
        aligned = [self._aligned[i] for i in chosen]
        values = to_device(torch.cat([one.values for one in aligned]), hidden.device)
        log_rest = to_device(
            torch.cat([one.log_rest for one in aligned if one.log_rest is not None]), hidden.device
        )
        return confidence_divergence(student.logprobs, values, student.log_rest, log_rest).mean()

    def chosen(self, step: int, micro_batch: int, rank: int, micro_batches: int) -> list[int]:
        """The numbers of a micro-batch's anchors: cyclic over the steps, the same in a run that was interrupted.

        The step's anchors are spread over its micro-batches and ranks, equally many in each and at least one.

        Args:
            step: Optimiser step, from 1.
            micro_batch: Number within the step, from 0.
            rank: Process.
            micro_batches: Of the step on each rank. Those beyond have as many again.

        Raises:
            ConfigError: `micro_batches` is below 1.
        """
        if micro_batches < 1:
            raise ConfigError(
                "out of range",
                key="micro_batches",
                value=micro_batches,
                remedy="It is the number of micro-batches of this optimiser step, 1 or more.",
            )
        size = len(self.turns)
        count = -(-self.per_step // (ranks() * micro_batches))
        beyond, place = divmod(micro_batch, micro_batches)
        start = (((step - 1) * ranks() + rank) * micro_batches + place) * count
        start += round(_SHIFT * size) * beyond
        return [self.turns[(start + i) % size] for i in range(count)]

    def _predicted(self, autocast: AbstractContextManager[Any] | None) -> list[Aligned]:
        """Of each document, on the host; those of like length are read together."""
        reference = self._passes.reference
        order = sorted(range(len(self.documents)), key=lambda place: -len(self.documents[place].tokens))
        found: dict[int, Aligned] = {}
        with reference.session():
            for start in range(0, len(order), BATCH):
                places = order[start : start + BATCH]
                group = [self.documents[place] for place in places]
                read = computed(group, self._passes, lambda inputs: reference.hidden((), inputs, autocast))
                found.update(zip(places, read, strict=True))
        return [found[place] for place in range(len(order))]


@contextmanager
def tolerated(config: PactConfig) -> Iterator[None]:
    """A warning, instead of an error, where a run cannot have anchors and nobody has asked for them.

    Raises:
        PactError: That of the block, if `anchors` or other prompts for them are set, or nothing else is held.
    """
    try:
        yield
    except PactError as error:
        if config.asks_for_anchors:
            raise
        warnings.warn(
            "PACT: no anchors in this run: the data alone is held, and refusals may spread to harmless prompts. "
            f"{error}",
            stacklevel=4,
        )


def require_one_backward(decoder: nn.Module) -> None:
    """Refuse reentrant checkpointing on several ranks.

    Its backward passes are each by themselves, so a parameter's gradient is complete once for the batch and once for
    the anchors; DistributedDataParallel averages it the first time only, in silence.
    """
    for module in decoder.modules() if ranks() > 1 else ():
        function = getattr(module, "_gradient_checkpointing_func", None)
        keywords = getattr(function, "keywords", None) or {}
        if getattr(module, "gradient_checkpointing", False) and keywords.get("use_reentrant", False):
            raise ConfigError(
                "reentrant checkpointing on several ranks does not average the gradients of anchors",
                key="gradient_checkpointing_kwargs",
                value=dict(keywords),
                remedy="Set `gradient_checkpointing_kwargs: {use_reentrant: false}`, or `anchors: 0`.",
            )


def _document(pair: Pair) -> Document:
    prompt, answer = pair
    index = np.arange(len(answer))
    return Document(b"", np.asarray(prompt + answer, dtype=np.int64), len(prompt) + index, index)
