"""Anchors: prompts without labels at which the model in training is held to the aligned one's own answers (clause C10).

In each optimiser step a few of them are held, so that the constraint also holds where the data says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pact_plugin.config import Anchors
from pact_plugin.data.documents import full_context
from pact_plugin.errors import ConfigError
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.ranks import is_fsdp, rank, world_size
from pact_plugin.model.readout import Tokens
from pact_plugin.model.transfer import to_device
from pact_plugin.model.wrappers import without_noise
from pact_plugin.reference.columns import Buckets, Columns, tokens_of_each
from pact_plugin.reference.header import digest_of
from pact_plugin.reference.passes import Passes, states_of
from pact_plugin.reference.pool import PoolAnswer
from pact_plugin.reference.source import Source
from pact_plugin.terms.aligned_anchors import AlignedAnchors
from pact_plugin.terms.anchor_prompts import anchors_from
from pact_plugin.terms.anchor_schedule import Schedule, by_turns
from pact_plugin.terms.base import Contribution, MicroBatch
from pact_plugin.terms.step import MicroStep
from pact_plugin.terms.student import Student


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
        ConfigError: The aligned model answers none of them at all, or has too few tokens for `top_k`.
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
        self._weight, self._student = weight, student
        kinds = anchors_from(settings, asked)
        harmful, benign = kinds["harmful"], kinds["benign"]
        self.digest = digest_of([harmful, benign])
        self.harmful = len(harmful)  # anchors 0 to harmful - 1; benign ones follow
        buckets = Columns("buckets", student.ids, top_k=max(settings.top_k, settings.benign_top_k))
        passes = Passes(source, (buckets,), student.chunk_size)
        self.aligned = AlignedAnchors(passes, (*harmful, *benign), lasting=lasting)
        self.documents = self.aligned.documents
        tops = [settings.top_k] * len(harmful) + [settings.benign_top_k] * len(benign)
        self._held = [len(student.ids) + top for top in tops]  # buckets of each anchor, without the rest
        self.schedule = Schedule(by_turns(len(harmful), len(benign)), settings.per_step)
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
        chosen = self.schedule.chosen(micro.step.number, micro.number, rank(), micro.step.micro_batches)
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
        self.aligned.read(micro.autocast, self._student.device(micro.trained))
        aligned = self.aligned.at(chosen)
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
