"""Anchors: prompts without labels at which the model in training is held to the aligned one's own answers (clause C10).

In each optimiser step a few of them are held, so that the constraint also holds where the data says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pact_plugin.config import Anchors
from pact_plugin.data.documents import Document, full_context
from pact_plugin.data.generation import Pair, longest_first
from pact_plugin.data.prompts import Prompt, PromptSet
from pact_plugin.errors import ConfigError
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.ranks import broadcast_object, is_fsdp, rank, world_size
from pact_plugin.model.readout import Tokens
from pact_plugin.model.transfer import to_device
from pact_plugin.model.wrappers import without_noise
from pact_plugin.reference.columns import Buckets, Columns, tokens_of_each
from pact_plugin.reference.passes import Passes, states_of
from pact_plugin.reference.pool import BATCH, PoolAnswer
from pact_plugin.reference.source import Source
from pact_plugin.terms.anchor_prompts import anchors_from, schedule
from pact_plugin.terms.base import Contribution, MicroBatch, MicroStep
from pact_plugin.terms.student import Student

_SHIFT = 0.618
"""Offset into the schedule, as a share of its length, for micro-batches beyond `Step.micro_batches`. The golden ratio
keeps any number of them apart."""


class AnchorsTerm:
    """Adds weight · (mean over the anchors of their mean D) for each token that the task counts.

    Args:
        settings: `per_step` of them in each optimiser step.
        weight: Factor of the divergence.
        asked: What the aligned model answers to `anchor_prompts`, in their order.
        student: The model in training.
        source: The aligned model; kept where it lasts.
        lasting: Whether the source still is the aligned model after the first step.

    Raises:
        ConfigError: The aligned model answers none of them as it should, or has too few tokens for `top_k`.
    """

    name = "anchors"
    columns: tuple[Columns, ...] = ()
    first = 0
    metrics = ("loss", "anchor_divergence", "refusal_shift")

    def __init__(
        self,
        settings: Anchors,
        weight: float,
        asked: Sequence[PoolAnswer],
        student: Student,
        source: Source,
        *,
        lasting: bool,
    ) -> None:
        _require_a_rest(settings, student)
        self.per_step = settings.per_step
        self._weight, self._student = weight, student
        self._buckets = Columns("buckets", student.ids, top_k=max(settings.top_k, settings.benign_top_k))
        kinds = anchors_from(settings, asked)
        self.digest = PromptSet(tuple(Prompt(one.text, one.kind) for one in asked), "anchors").digest
        harmful, benign = kinds["harmful"], kinds["benign"]
        self.harmful = len(harmful)  # anchors 0 to harmful - 1; benign ones follow
        self.documents = [_document(pair) for pair in (*harmful, *benign)]
        tops = [settings.top_k] * len(harmful) + [settings.benign_top_k] * len(benign)
        self._held = [len(student.ids) + top for top in tops]  # buckets of each, the rest apart
        self.schedule = schedule(len(harmful), len(benign))
        passes = Passes(source, (self._buckets,), student.chunk_size)
        # A source that lasts is read in the first step, in the precision that this runs in.
        self._passes = passes if lasting else None
        self._aligned = None if lasting else self._split(broadcast_object(_predicted(passes, self.documents)))
        self._begun = False

    def __call__(self, batch: MicroBatch) -> Contribution:
        """See the class."""
        assert batch.micro is not None
        return self.ahead(batch.micro)

    def ahead(self, micro: MicroStep) -> Contribution:
        """As `__call__`, from what is known before the data's forward pass."""
        if not (self._begun or micro.apart):
            require_one_backward(self._student.head.decoder)
            self._begun = True
        chosen = self.chosen(micro.step.number, micro.number, rank(), micro.step.micro_batches)
        # Without a response too: sharded models need every rank.
        divergence, shifts = self._measured(chosen, micro)
        total = divergence * micro.trained
        means = {
            "anchor_divergence": (total.detach().clamp(min=0), micro.trained),
            "refusal_shift": (shifts.sum(), len(shifts)),
        }
        return Contribution(penalty=self._weight * total, means=means)

    def _measured(self, chosen: list[int], micro: MicroStep) -> tuple[Float[Tensor, ""], Float[Tensor, " H"]]:
        """How far the model in training has moved at some anchors.

        Returns:
            Mean over the anchors of the mean divergence over each one's positions, in nats per token, with gradient;
            and for each of the H harmful ones the shift of the log odds of P(S) at its first token, in nats, without.
        """
        self._read_once(micro)
        aligned = self.aligned(chosen)
        lengths = torch.tensor([len(self.documents[i].columns) for i in chosen])
        held = torch.tensor([self._held[i] for i in chosen]).repeat_interleave(lengths)
        shares = (1 / (lengths * len(chosen))).repeat_interleave(lengths)
        begins = lengths.cumsum(0) - lengths
        refusing = begins[torch.tensor(chosen) < self.harmful]
        ours = self._read(chosen, aligned.likeliest, micro)
        place = partial(to_device, device=ours.logprobs.device)
        theirs = Buckets(aligned.likeliest, place(aligned.logprobs), place(aligned.log_rest))
        held = place(held)
        (logprobs, log_rest), (aligned_logprobs, aligned_log_rest) = ours.folded(held), theirs.folded(held)
        divergence = confidence_divergence(logprobs, aligned_logprobs, log_rest, aligned_log_rest)
        with torch.no_grad():
            of_safety = len(self._student.ids)
            shifts = (ours.log_odds(of_safety) - theirs.log_odds(of_safety))[place(refusing)]
        return (divergence * place(shares)).sum(), shifts

    def _read_once(self, micro: MicroStep) -> None:
        """Have a source that lasts read all anchors, in the first step."""
        if self._aligned is None:
            assert self._passes is not None
            device = self._student.device(micro.trained)
            self._aligned = self._split(_predicted(self._passes, self.documents, micro.autocast, device))

    def _read(self, chosen: list[int], likeliest: Int[Tensor, "M T"], micro: MicroStep) -> Buckets:
        """What the model in training says of the buckets, with gradient.

        Args:
            chosen: Numbers of the anchors.
            likeliest: The tokens that are buckets beside the safety tokens, at each of their M positions; on the host.
            micro: The micro-batch.
        """
        student = self._student

        def call(inputs: dict[str, Any]) -> Tensor:
            with micro.autocast, without_noise(student.head.decoder):
                return student.head.decoder(**inputs).last_hidden_state

        rows = [full_context(self.documents[i]) for i in chosen]
        hidden = states_of(rows, student.device(micro.trained), call, flat=student.head.keeps_documents_apart)
        tokens: Tokens = student.ids_on(hidden.device)
        if likeliest.shape[1]:
            tokens = tokens_of_each(torch.tensor(student.ids), likeliest).to(hidden.device)
        read = student.head.readout(hidden, tokens, chunk_size=student.chunk_size)
        return Buckets(likeliest, read.logprobs, read.log_rest)

    def aligned(self, chosen: Sequence[int]) -> Buckets:
        """What the aligned model predicts at some anchors, once it has read them; on the host.

        Args:
            chosen: Numbers of the anchors.
        """
        assert self._aligned is not None
        packed = torch.cat([self._aligned[i] for i in chosen])
        return Buckets.of(packed, self._buckets.top_k)

    def _split(self, packed: Float[Tensor, "R B"]) -> tuple[Tensor, ...]:
        return packed.split([len(document.columns) for document in self.documents])

    def chosen(self, step: int, micro_batch: int, rank: int, micro_batches: int) -> list[int]:
        """The numbers of a micro-batch's anchors: cyclic over the steps, the same in a run that was interrupted.

        The step's anchors are spread over its micro-batches and ranks, equally many in each and at least one. With
        `per_step: 4`, 2 ranks and 2 micro-batches each has one, at this place of the schedule:

            step 1:  rank 0 has 0, then 1;  rank 1 has 2, then 3
            step 2:  rank 0 has 4, then 5;  rank 1 has 6, then 7

        Args:
            step: Optimiser step, from 1.
            micro_batch: Number within the step, from 0.
            rank: Process.
            micro_batches: Of the step on each rank. Further ones have the same number of anchors.
        """
        size, ranks = len(self.schedule), world_size()
        count = math.ceil(self.per_step / (ranks * micro_batches))
        rounds, micro_batch = divmod(micro_batch, micro_batches)
        slot = ((step - 1) * ranks + rank) * micro_batches + micro_batch
        start = slot * count + rounds * round(_SHIFT * size)
        return [self.schedule[(start + i) % size] for i in range(count)]


def require_one_backward(decoder: nn.Module) -> None:
    """Refuse reentrant checkpointing on several ranks.

    Its backward passes are each by themselves, so a parameter's gradient is complete once for the batch and once for
    the anchors; DistributedDataParallel averages it the first time only, in silence. FSDP2 averages each.

    Raises:
        ConfigError: Names the setting to change.
    """
    for module in decoder.modules() if world_size() > 1 and not is_fsdp(decoder) else ():
        function = getattr(module, "_gradient_checkpointing_func", None)
        keywords = getattr(function, "keywords", None) or {}
        # torch's own default is reentrant
        if getattr(module, "gradient_checkpointing", False) and keywords.get("use_reentrant", True):
            raise ConfigError(
                "reentrant checkpointing on several ranks does not average the gradients of anchors",
                key="gradient_checkpointing_kwargs",
                value=dict(keywords),
                remedy="Call `constraint.ahead(batch, step).backward()` before the forward pass, or set "
                "`gradient_checkpointing_kwargs: {use_reentrant: false}`.",
            )


def _require_a_rest(settings: Anchors, student: Student) -> None:
    """The divergence needs a token beyond those that it compares one by one."""
    for name in ("top_k", "benign_top_k"):
        top, size = getattr(settings, name), student.vocabulary
        if top and size is not None and len(student.ids) + top >= size:
            raise ConfigError(
                f"with the {len(student.ids)} safety tokens it takes the whole vocabulary of {size} tokens",
                key=f"anchors.{name}",
                value=top,
                remedy=f"Set it to less than {size - len(student.ids)}.",
            )


def _predicted(
    passes: Passes,
    documents: list[Document],
    autocast: AbstractContextManager[Any] | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "R B"]:
    """The buckets at the answers of all documents, on the host; those of like length are read together."""
    (buckets,) = passes.columns
    found: dict[int, Tensor] = {}
    with passes.source.session(device):
        for places in longest_first([document.tokens for document in documents], BATCH):
            group = [documents[place] for place in places]
            read = passes.of_documents(group, lambda inputs: passes.source.hidden((), inputs, autocast))
            found.update((place, one[buckets]) for place, one in zip(places, read, strict=True))
    return torch.cat([found[place] for place in range(len(documents))])


def _document(pair: Pair) -> Document:
    prompt, answer = pair
    index = np.arange(len(answer))
    return Document(b"", np.asarray(prompt + answer, dtype=np.int64), len(prompt) + index, index)
