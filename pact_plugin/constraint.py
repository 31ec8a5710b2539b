"""PactConstraint: the parts, as one object beside a training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pact_plugin.config import PactConfig
from pact_plugin.data.positions import nothing_masked
from pact_plugin.data.view import View, Watch
from pact_plugin.errors import ConfigError, NoResponseError
from pact_plugin.hooks.manager import load_reference, load_safety_tokens
from pact_plugin.model.head import check_head, language_head
from pact_plugin.model.ranks import refuse_zero3
from pact_plugin.model.task_loss import TaskHead
from pact_plugin.model.wrappers import evaluation_mode
from pact_plugin.reference.passes import Aligned, Passes
from pact_plugin.reference.source import build_reference
from pact_plugin.reference.stored import StoredReference
from pact_plugin.run.drift import loose_hold
from pact_plugin.run.finite import FiniteCheck
from pact_plugin.run.meter import Meter, Reduce, Sums
from pact_plugin.run.receipt import Receipt
from pact_plugin.terms import objectives
from pact_plugin.terms.anchors import Anchors, require_one_backward, tolerated
from pact_plugin.terms.promptfree import assistant_header, gate_end
from pact_plugin.tokens.beginnings import warn_of

TOKENS_FILE = "pact_safety_tokens.safetensors"
"""Where the safety tokens of a run lie, beside its receipt."""


class PactConstraint:
    """Holds a causal language model's safety tokens to the aligned model it starts from.

    Built before the first training step, on the device that trains:

        constraint = PactConstraint(model, tokenizer, config)
        for batch in loader:
            with constraint.watch():
                output = model(**batch)
            loss = output.loss + constraint.loss(batch)

    With `reference: stored`, `constraint.fill(loader)` goes before the loop, and no reference runs inside of it.

    Args:
        model: A causal language model, with or without PEFT adapters; still the aligned model.
        tokenizer: Its tokenizer.
        config: Settings, as a PactConfig or a mapping.
        reference_model: The aligned model itself, where `config.reference` should not decide.

    Raises:
        PactError: The safety tokens, the model and the reference do not fit; nothing is left changed.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: PactConfig | dict[str, Any],
        *,
        reference_model: nn.Module | None = None,
    ) -> None:
        self.config = PactConfig.of(config)
        refuse_zero3(model)
        self.model = model
        self.head = language_head(model)
        self.device = next(self.head.decoder.parameters()).device
        self.tokens = load_safety_tokens(self.config, model, tokenizer)
        rows = getattr(self.head.projection, "out_features", None)
        self.tokens.check(tokenizer, rows)
        if self.config.safety_tokens is not None:  # else they were chosen just now
            warn_of(self.tokens)
        published = self.config.published if self.config.objective == "published" else None
        self._set = self.tokens if published else self.tokens.positive
        self._ids = torch.tensor(self._set.ids, device=self.device)
        self._weights = torch.tensor(self._set.weights, device=self.device)
        header = assistant_header(tokenizer, published.assistant_header) if published else None
        with evaluation_mode(model):
            check_head(model, self.head, self._ids[:16])
        spec = (
            reference_model if reference_model is not None else load_reference(self.config, model, tokenizer)
        )
        if spec == "auto" and self.config.store is not None:
            spec = "stored"
        self.reference = build_reference(model, spec, self._ids[:16])
        self._passes = Passes(
            self.reference,
            self._ids,
            self.config.chunk_size,
            header,
            gate_end(published.prefix, published.decay, published.boost) if published else 0,
            self.config.first_tokens is not None,
        )
        self.stored: StoredReference | None = None
        if self.reference.kind == "stored":
            self.stored = StoredReference(self.config, self._set, self._passes, model, tokenizer)
        self.anchors: Anchors | None = None
        if self.config.anchor_count:
            with tolerated(self.config):
                self.anchors = Anchors(self.config, tokenizer, self.head, self._passes)
        data = self._holds_data
        train = Meter(self.config.weight, data=data, anchors=self.anchors is not None)
        self._meters = {"train": train, "eval": Meter(self.config.weight, data=data)}
        self._watch = Watch(self.head.decoder, self.config.first_tokens)
        self._task_head = TaskHead(self.config, model, self.head, self._ids)
        self._finite = FiniteCheck()
        self._first, self._warned = True, False
        self.receipt = Receipt(
            config=self.config.summary(),
            tokens={
                "digest": self.tokens.digest,
                "count": len(self.tokens),
                "tokenizer": self.tokens.fingerprint,
            },
            reference=self.reference.kind,
            store=self.stored.store.header.digest if self.stored else None,
            anchor_prompts=len(self.anchors.documents) if self.anchors else 0,
        )

    @property
    def can_fill(self) -> bool:
        """Whether `fill` can compute what the store lacks."""
        return self.stored is not None and self.stored.at_hand(self._begun)

    @property
    def _holds_data(self) -> bool:
        return self.config.holds_data(self.anchors is not None)

    @property
    def _begun(self) -> bool:
        return self.receipt.total_steps > 0

    def fill(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        model: nn.Module | None = None,
        tokens_per_pass: int = 16384,
        progress: bool = True,
    ) -> None:
        """Store the aligned model's predictions for every document of some batches (spec/PACT.md, clause C7.4).

        What is stored already is left as it is, so an interrupted call goes on where it was. With several ranks
        every rank calls it, with its own part of the data.

        Args:
            batches: As training will see them, on any device; padding, packing and order do not matter.
            model: The model in training inside its wrappers, where they shard it; the constraint's own when absent.
            tokens_per_pass: Tokens in one forward pass, padding included; bounds the memory.
            progress: Whether to show a progress bar.

        Raises:
            ConfigError: The reference is not a stored one.
            ModelStructureError: DeepSpeed has partitioned the parameters.
            ReferenceModelError: The model's weights have changed since the constraint was built.
            StoreError: A document is missing and the model is no longer the aligned one, another run is filling the
                same folder, or it does not fit on the disk.
        """
        if self.stored is None:
            raise ConfigError(
                f"nothing is stored with `reference: {self.reference.kind}`",
                key="reference",
                remedy="Set `reference: stored` and name a folder with `store`, or do not call `fill`.",
            )
        refuse_zero3(self.model)
        self.stored.fill(
            batches,
            self.model if model is None else model,
            begun=self._begun,
            tokens_per_pass=tokens_per_pass,
            progress=progress,
        )

    def watch(self, batch: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
        """Keep the final hidden states of the first forward pass inside, for the next `loss`.

        Args:
            batch: The one that `loss` will be given. With it the host finds its response positions and what is
                stored of them while an accelerator runs the forward pass, instead of after it.
        """
        return self._watch.forward(batch)

    def loss(
        self,
        batch: Mapping[str, Any],
        *,
        num_items_in_batch: Tensor | int | None = None,
        world_size: int = 1,
        step: int | None = None,
        micro_batches: int = 1,
        task_loss: Literal["nll", "dft"] = "nll",
        empty_ok: bool = False,
        label_logprobs: Float[Tensor, "B T-1"] | None = None,
    ) -> Float[Tensor, ""]:
        """What to add to the task loss of the forward pass just watched (spec/PACT.md, clauses C2 to C6 and C10).

        Args:
            batch: `labels` [B, T], with `position_ids` or `cu_seq_lens_q` where rows hold several documents, and the
                `attention_mask` where rows are padded on the left.
            num_items_in_batch: The task loss's denominator: its tokens over the whole optimiser step. Those of
                this batch when absent.
            world_size: Factor by which the task loss anticipates the averaging of gradients over ranks.
            step: Optimiser step, from 1, for the receipt. The next one when absent.
            micro_batches: Calls with this `step` on each rank, over which the step's anchors are spread (C10.2).
            task_loss: How the task weighs a token, which the easing takes part of.
            empty_ok: Whether this batch may have no response token (one of several in a step).
            label_logprobs: log p of every label but the first column's, at temperature 1 and with its gradient, from
                the same forward pass, where the task loss has it. The constraint then need not read the head.

        Returns:
            A scalar in nats, with gradient; zero without effect at weight 0.

        Raises:
            HiddenStatesNotSeenError: The forward pass was not watched.
            ModelStructureError: DeepSpeed has partitioned the parameters (ZeRO stage 3).
            NoResponseError: No label is trained on.
            NonFiniteError: The constraint or the reference is NaN or infinite (on accelerators one step later).
            ConfigError: There are anchors, several ranks and reentrant checkpointing, or `micro_batches` is below 1.
        """
        if self._first:  # an engine may have partitioned the model since
            refuse_zero3(self.model)
            self.require_of_anchors(lambda: require_one_backward(self.head.decoder))
        self._finite.check()
        view = self._task_head.checked(self._watch.view(batch, train=True, label_logprobs=label_logprobs))
        evaluated = self._evaluate(view, train=True)
        assert evaluated is not None
        count = int(evaluated.trained) if num_items_in_batch is None else num_items_in_batch
        if self._first or (num_items_in_batch is None and not empty_ok):
            self._check_first(batch, count, empty_ok)
        denominator = _at_least_1(count, evaluated.divergence.device)
        held = evaluated.divergence if self._holds_data else evaluated.divergence.detach() * 0
        total = self.config.weight * held.sum()
        if self.config.eases:
            total = total - objectives.eased_task_loss(evaluated, task_loss)
        step = self.receipt.total_steps + 1 if step is None else step
        sums = evaluated.sums()
        if self.anchors is not None:  # without a response too: sharded models need every rank
            anchored = self.anchors.divergence(step, micro_batches, view.autocast) * evaluated.trained
            sums.anchor_divergence = anchored.detach()
            total = total + self.config.weight * anchored
        self._record(sums, "train")
        self.receipt.add_step(step)
        return total / denominator * world_size

    @torch.no_grad()
    def observe(self, batch: Mapping[str, Any], label_logprobs: Float[Tensor, "B T-1"] | None = None) -> None:
        """Measure an evaluation batch just watched; read by `metrics("eval")`. Arguments as for `loss`.

        A batch with a document that is neither stored nor can be computed leaves that evaluation without metrics.
        """
        evaluated = self._evaluate(self._watch.view(batch, train=False), train=False)
        if evaluated is None:
            self._meters["eval"].add(Sums(unknown=1))
        else:
            self._record(evaluated.sums(), "eval")

    def metrics(
        self, mode: Literal["train", "eval"] = "train", reduce: Reduce | None = None
    ) -> dict[str, float]:
        """Means of the `pact/*` metrics since the last call, over all ranks when `reduce` sums over them.

        None, with a warning, of an evaluation whose documents are not all known.

        Raises:
            NoResponseError: There was no response position since the last call.
            NonFiniteError: One of them is NaN or infinite.
        """
        self.flush(mode, reduce)
        return self._meters[mode].metrics("labels" if mode == "train" else "eval labels")

    def flush(self, mode: Literal["train", "eval"] = "train", reduce: Reduce | None = None) -> None:
        """Bring what was measured to the host, and into the receipt."""
        flushed = self._meters[mode].flush(self.device, reduce)
        if mode == "train":
            self.receipt.positions += round(flushed.positions)
            self.receipt.divergence += flushed.divergence
            self.receipt.anchor_divergence += flushed.anchor_divergence
            self.receipt.trained_tokens += round(flushed.tokens)

    def write_receipt(self, directory: str | Path) -> None:
        """Write the receipt and the safety tokens into a directory; warn, once, if the run does not hold (`hold`)."""
        self.receipt.write(directory)
        self.tokens.save(Path(directory) / TOKENS_FILE)
        loose = loose_hold(self.receipt)
        if loose and not self._warned:
            warnings.warn(f"PACT: {loose}", stacklevel=2)
            self._warned = True

    def require_of_anchors(self, condition: Callable[[], None]) -> None:
        """Go on without the anchors, with a warning, where they cannot be and nobody has asked for them.

        Args:
            condition: Raises a PactError where they cannot be.

        Raises:
            PactError: That of the condition, if `anchors` is set.
        """
        anchors, self.anchors = self.anchors, None
        if anchors is not None:
            with tolerated(self.config):
                condition()
                self.anchors = anchors
        if self.anchors is None:
            self.receipt.anchor_prompts = 0
            self._meters["train"].anchors = False
            for meter in self._meters.values():
                meter.data = self._holds_data

    def _evaluate(self, view: View, *, train: bool) -> objectives.Evaluated | None:
        if self.stored is None:
            aligned: Aligned | None = self._passes.of_view(view)
        else:
            aligned = self.stored.aligned(view, train=train, begun=self._begun)
        if aligned is None:
            return None
        return objectives.evaluate(self.config, self.head, aligned, view, self._ids, self._weights)

    def _check_first(self, batch: Mapping[str, Any], count: Tensor | int, empty_ok: bool) -> None:
        if self._first and nothing_masked(batch):
            warnings.warn(
                "PACT: no token is masked in the first batch, so prompts are constrained as if they were answers. "
                "Mask them: TRL `completion_only_loss` or `assistant_only_loss`, Axolotl `train_on_inputs: false`.",
                stacklevel=3,
            )
        if not empty_ok and int(count) == 0:
            raise NoResponseError(
                "the labels are all -100",
                key="labels",
                remedy="Check masking, truncation and the chat template; at least one token must be trained on.",
            )
        self._first = False

    def _record(self, sums: Sums, mode: str) -> None:
        self._meters[mode].add(sums)
        self._finite.add(sums.divergence + sums.anchor_divergence, sums.safety_mass_reference)


def _at_least_1(count: Tensor | int, device: torch.device) -> Tensor | int:
    """A denominator, without making the host wait for one that is on the device."""
    if torch.is_tensor(count) and count.device.type != "cpu":
        return count.to(device).clamp(min=1)
    return max(int(count), 1)
