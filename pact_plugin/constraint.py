"""The constraint beside a training loop: it watches a forward pass, and says what to add to the task's loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pact_plugin.data.positions import nothing_masked, trained_labels
from pact_plugin.data.view import Watch
from pact_plugin.errors import ConfigError, NoResponseError
from pact_plugin.model.ranks import all_gather_object, keep_root_whole, needs_every_rank
from pact_plugin.model.wrappers import ambient_autocast
from pact_plugin.reference.columns import furthest, invalid
from pact_plugin.run.meter import Reduce, Sums
from pact_plugin.run.parts import Parts
from pact_plugin.run.record import Mode, Record
from pact_plugin.terms.ahead import Ahead
from pact_plugin.terms.base import Contribution, MicroBatch, OwnPassTerm, combined
from pact_plugin.terms.step import MicroStep, Step
from pact_plugin.terms.student import Reading


class Constraint:
    """Holds a causal language model to the aligned model that it starts from, where it may refuse.

    Args:
        parts: What it is made of.
    """

    def __init__(self, parts: Parts) -> None:
        self.config, self.model, self.terms = parts.config, parts.model, parts.terms
        self.tokens, self.reference, self._student = parts.tokens, parts.reference, parts.student
        self._looking = parts.looking
        self._watch = Watch(parts.student.head.decoder, furthest(parts.terms))
        self._ahead = Ahead(parts.terms)
        self._begun, self._micro_batch, self._masked = False, (0, 0), parts.masked
        self.record = Record.of(parts)
        """Metrics and receipt."""

    def fill(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        model: nn.Module | None = None,
        tokens_per_pass: int = 16384,
        progress: bool = True,
    ) -> None:
        """Write the aligned model's predictions for every document of some batches (spec/PACT.md, clause C7.4).

        What is there already is left as it is, so an interrupted call goes on where it was. With several ranks every
        rank calls it, with its own part of the data.

        Args:
            batches: As training will see them, on any device; padding, packing and order do not matter.
            model: The model in training inside its wrappers, where they shard it; the constraint's own when absent.
            tokens_per_pass: Tokens in one forward pass, padding included; bounds the memory.
            progress: Whether to show a progress bar.

        Raises:
            ConfigError: The reference has no table.
            ModelStructureError: The first version of FSDP has flattened the parameters, or the head was replaced.
            NonFiniteError: The aligned model predicts NaN or infinity.
            ReferenceModelError: The model's weights have changed since the constraint was built.
            StoreError: A document is missing of a model that has changed, another run fills it, or it would not fit.
        """
        self._student.require_same_head()
        model = self.model if model is None else model
        keep_root_whole(model)
        self._note_begun()
        self.reference.fill(batches, model=model, tokens_per_pass=tokens_per_pass, progress=progress)

    def watch(self, batch: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
        """Keep the final hidden states of the first forward pass inside, for the next `loss`.

        Args:
            batch: The one that `loss` will be given. With it the host finds its response positions, and what the table
                has of them, while an accelerator runs the forward pass, instead of after it.
        """
        if not self._begun:
            keep_root_whole(self.model)
        return self._watch.forward(batch)

    def ahead(self, batch: Mapping[str, Any], step: Step | None = None) -> Float[Tensor, ""]:
        """What anchors add to a batch, for a backward pass of its own before the forward pass of the batch.

            constraint.ahead(batch).backward()

        Optional: a step's gradient is the same. The anchors' activations are gone before those of the batch are made.

        Args:
            batch: Its `labels` [B, T] are counted.
            step: As `loss` will be given it.

        Returns:
            A scalar, in nats per token of the step, times its `world_size`; without effect where there are no anchors.

        Raises:
            ModelStructureError: The first version of FSDP has flattened the parameters, or the head was replaced.
        """
        self._check_first(batch)
        step, trained = step or self._next_step(), trained_labels(batch["labels"])
        device = self._student.device(batch["labels"])
        micro = MicroStep(step, self._number(step), trained, ambient_autocast(device), apart=True)
        return step.per_token(self._ahead.add(micro, device), trained)

    def loss(
        self,
        batch: Mapping[str, Any],
        step: Step | None = None,
        *,
        task_loss: Literal["nll", "dft"] = "nll",
    ) -> Float[Tensor, ""]:
        """What to add to the task loss of the forward pass just watched (spec/PACT.md, clauses C2 to C6 and C10).

        Args:
            batch: `labels` [B, T], with `position_ids` or `cu_seq_lens_q` where rows hold several documents, and the
                `attention_mask` where rows are padded on the left.
            step: The optimiser step of this batch. When absent, the next, of this batch alone, which needs a response.
            task_loss: How the task weights its loss, part of which easing takes off: `dft` by each token's probability.

        Returns:
            A scalar, in nats per token of the step, times its `world_size`; negative where easing takes off more than
            anchors add; zero without effect at weight 0.

        Raises:
            HiddenStatesNotSeenError: The forward pass was not watched.
            ShapeError: The labels do not have the shape of the forward pass.
            ModelStructureError: FSDP1, or ZeRO-3 where all logits are read; another head; or given embeddings.
            NoResponseError: No label is trained on.
            NonFiniteError: The constraint or the reference is NaN or infinite (on accelerators one step later).
            ConfigError: There are anchors, several ranks and reentrant checkpointing; or `step` goes back.
            ReferenceModelError: Weights have begun to train that the aligned model shares.
            StoreError: A document is neither in the table nor can it be computed.
        """
        self._check_first(batch)
        alone = step is None
        step = step or self._next_step()
        view = self._watch.view(batch, train=True)
        trained = view.positions.trained
        if alone and int(trained) == 0:
            raise NoResponseError(
                "the labels are all -100",
                key="labels",
                remedy="Check masking, truncation and the chat template; at least one token must be trained on.",
            )
        micro = MicroStep(step, self._number(step), trained, view.autocast)
        self._micro_batch = step.number, micro.number
        acting = self.config.weight > 0
        with torch.set_grad_enabled(acting and torch.is_grad_enabled()):
            aligned = self.reference.aligned(view, train=True)
            assert aligned is not None
            given = MicroBatch(view, Reading(self._student, view), aligned, micro, task_loss)
            total = self._noted([self._ahead.part(term, given) for term in self.terms], given, "train")
        self.record.receipt.add_step(step.number)
        return step.per_token(total, trained) if acting else torch.zeros((), device=total.device)

    def anchor_loss(
        self, step: Step | None = None, *, tokens: Tensor | int, apart: bool = False
    ) -> Float[Tensor, ""]:
        """What anchors add to a task loss that has no labels, such as DPO's (spec/PACT.md, clause C10.6).

            loss = dpo_loss + constraint.anchor_loss(tokens=completion_mask[:, 1:].sum())

        It is weight · mean D over the anchors of this micro-batch, to be averaged over a step's as the task loss is.

        Args:
            step: The optimiser step that this micro-batch is part of; when absent, the next one, of this alone.
            tokens: How many tokens of the micro-batch are trained on, for the receipt.
            apart: Whether it has a backward pass of its own, before the forward pass of the batch: as `ahead`.

        Returns:
            A scalar in nats, with gradient.

        Raises:
            ConfigError: A term needs labels; `step` goes back; or, not `apart`, several ranks checkpoint reentrantly.
            ModelStructureError: The first FSDP keeps the parameters, or the head was replaced.
            NonFiniteError: The constraint is NaN or infinite (on accelerators one step later).
        """
        if self._looking:
            key, problem = self._looking[0].name, "it looks at labels, of which this task has none"
            raise ConfigError(problem, key=key, value=True, remedy=f"Turn `{key}` off.")
        self._check_first()
        step = step or self._next_step()
        device = self._student.device(tokens)
        micro = MicroStep(step, self._number(step), 1, ambient_autocast(device), apart)
        self._micro_batch = step.number, micro.number
        parts = [term.ahead(micro) for term in self.terms if isinstance(term, OwnPassTerm)]
        whole = combined(parts, device)
        means = {**whole.means, "loss": (whole.penalty.detach(), 1)}
        self.record.add(Sums(tokens, means=means), whole.penalty, "train")
        self.record.receipt.add_step(step.number)
        return whole.penalty

    @torch.no_grad()
    def observe(self, batch: Mapping[str, Any]) -> None:
        """Measure an evaluation batch just watched. `metrics("eval")` is empty if one of its documents is not known.

        Raises:
            HiddenStatesNotSeenError, ShapeError, ModelStructureError, NonFiniteError: As `loss` does.
        """
        if not self._looking:
            self._watch.forget()
            return
        self._note_begun()
        view = self._watch.view(batch, train=False)
        aligned = self.reference.aligned(view, train=False)
        known = [aligned is not None]
        if needs_every_rank(self._student.head.projection):  # none may read it without the others
            known = all_gather_object(known[0])
        if aligned is None or not all(known):
            self.record.unknown()
            return
        given = MicroBatch(view, Reading(self._student, view), aligned)
        self._noted([term(given) for term in self._looking], given, "eval")

    def metrics(self, mode: Mode = "train", reduce: Reduce | None = None) -> dict[str, float]:
        """Means of the `pact/*` metrics since the last call, over all ranks when `reduce` sums over them.

        Empty for an evaluation that no term looks at, or, with a warning, without responses or with unknown documents.

        Raises:
            NoResponseError: There was no response position in training yet.
            NonFiniteError: One of them is NaN or infinite.
        """
        return self.record.metrics(mode, reduce, self.reference.obstacle)

    def _noted(self, parts: list[Contribution], given: MicroBatch, mode: Mode) -> Float[Tensor, ""]:
        """The sum of the terms' parts, which go into the record."""
        whole = combined(parts, given.view.hidden.device)
        total, trained = whole.penalty - whole.relief, given.view.positions.trained
        means = {**whole.means, "loss": (whole.penalty.detach(), trained)}
        seen = len(given.view.host_positions)
        self.record.add(Sums(trained, seen, means, invalid(given.aligned)), total, mode)
        return total

    def _next_step(self) -> Step:
        return Step(self.record.receipt.total_steps + 1)

    def _number(self, step: Step) -> int:
        """Number of the next micro-batch within a step, from 0."""
        step.require_from(self.record.receipt.total_steps)
        again = self._micro_batch[0] == step.number == self.record.receipt.total_steps
        return self._micro_batch[1] + 1 if again else 0

    def _note_begun(self) -> None:
        if self.record.receipt.total_steps > 0:
            self.reference.begin()

    def _check_first(self, batch: Mapping[str, Any] | None = None) -> None:
        if not self._begun:
            self._student.require_same_head()  # it may have been wrapped since
            if batch is not None and self._masked is None and nothing_masked(batch):
                self.record.note_unmasked()
            self.reference.begin()
            self._begun = True
