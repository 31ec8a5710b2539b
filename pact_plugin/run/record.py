"""The record of a run: its metrics, and the receipt that they go into."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pact_plugin import __version__
from pact_plugin.run.drift import drift_warning
from pact_plugin.run.evidence import resumable
from pact_plugin.run.finite import FiniteCheck
from pact_plugin.run.meter import Meter, Reduce, Sums, no_response
from pact_plugin.run.parts import Parts
from pact_plugin.run.receipt import TOKENS_FILE, Receipt
from pact_plugin.terms.base import OwnPassTerm, Term
from pact_plugin.tokens.safety_tokens import SafetyTokens

Mode = Literal["train", "eval"]


_PATIENCE = 10
"""Steps after which a log without any response position stops a run; a few rows may have theirs truncated away."""


class Record:
    """What a run has measured, and what it was constrained by.

    Args:
        receipt: Of the run.
        tokens: Its safety tokens, which lie beside the receipt.
        device: Of the model in training, until a micro-batch says where that is.
        names: Of the metrics in training and in evaluations.
        looks: Whether any term looks at the data's response positions; only then must there be some.
    """

    def __init__(
        self,
        receipt: Receipt,
        tokens: SafetyTokens,
        device: torch.device,
        names: Mapping[Mode, Sequence[str]],
        *,
        looks: bool,
    ) -> None:
        self.receipt, self._tokens, self._device = receipt, tokens, device
        self._meters = {mode: Meter(own, looks=looks) for mode, own in names.items()}
        self._finite, self._warned, self._looks = FiniteCheck(), False, looks

    @classmethod
    def of(cls, parts: Parts) -> Record:
        """The record of a run that begins, constrained by these parts."""
        receipt = Receipt(
            config=parts.config.summary(),
            terms=[term.name for term in parts.terms],
            tokens=parts.tokens.summary(),
            reference=parts.reference.choice.name,
            aligned=parts.aligned,
            anchors=next((one.digest for one in parts.terms if isinstance(one, OwnPassTerm)), None),
            columns=parts.reference.asked,
            table=parts.reference.digest,
            release=__version__,
        )
        names: dict[Mode, list[str]] = {"train": _metrics(parts.terms), "eval": _metrics(parts.looking)}
        record = cls(receipt, parts.tokens, parts.student.device(), names, looks=bool(parts.looking))
        if parts.masked is False:
            record.note_unmasked()
        return record

    def begin(self) -> None:
        """Count from nothing, as a training does that begins in a process where one has ended."""
        self._meters["train"] = Meter(self._meters["train"].names, looks=self._looks)
        self.receipt.begin()

    def resume(self, checkpoint: str | Path) -> None:
        """Go on with the counts of the run that a checkpoint belongs to; called before the first step.

        Args:
            checkpoint: A folder that `write` has written to.

        Raises:
            ReceiptError: It holds no receipt, or one of an earlier run, or that run was constrained otherwise.
        """
        self.receipt.resume(resumable(checkpoint))

    def add(self, sums: Sums, loss: Tensor, mode: Mode) -> None:
        """Note a micro-batch.

        Args:
            sums: What was measured.
            loss: What is added to the task's summed loss, in nats.
            mode: Training or an evaluation.
        """
        self._device = loss.device  # a trainer may have moved the model since it was constrained
        self._meters[mode].add(sums)
        self._finite.add(loss, sums.invalid)

    def note_unmasked(self) -> None:
        """Take note that prompts are trained on like answers; once.

        Warns:
            UserWarning: A term looks at answers. Names the settings that mask prompts.
        """
        if self.receipt.unmasked or not self._looks:
            return
        self.receipt.unmasked = True
        eases = "easing" in self.receipt.terms
        warnings.warn(
            "PACT: no token is masked in the first rows, so "
            + ("easing sees no request. " if eases else "prompts are constrained as if they were answers. ")
            + "Mask the prompts: TRL `completion_only_loss` or `assistant_only_loss`, Axolotl `train_on_inputs: false`"
            + ", LLaMA-Factory `train_on_prompt: false`, ms-swift `loss_scale: default`"
            + ("; or set `easing: false`." if eases else "."),
            stacklevel=2,
        )

    def unknown(self) -> None:
        """Note an evaluation batch with documents whose reference is not known."""
        self._meters["eval"].add(Sums(unknown=1))

    def metrics(self, mode: Mode, reduce: Reduce | None, obstacle: str) -> dict[str, float]:
        """See `Constraint.metrics`; `obstacle` as for `Meter.metrics`."""
        self.flush(mode, reduce)
        training = mode == "train"
        required = training and self.receipt.total_steps >= _PATIENCE
        return self._meters[mode].metrics(obstacle, training=training, required=required)

    def flush(self, mode: Mode = "train", reduce: Reduce | None = None) -> None:
        """Bring what was measured to the host, over all ranks when `reduce` sums over them, and into the receipt."""
        flushed = self._meters[mode].flush(self._device, reduce)
        if mode == "train":
            self.receipt.add(flushed)

    def require_response(self) -> None:
        """Refuse a run that had no response position, once it has ended; a log would have done so before.

        Raises:
            NoResponseError: It had steps, and none of them one.
        """
        if self.receipt.total_steps and not self.receipt.trained_tokens:
            raise no_response("in the whole run")

    @property
    def so_far(self) -> Receipt:
        """The receipt, with what no `flush` has brought into it yet, of this rank alone.

        Raises:
            NonFiniteError: One of the metrics is NaN or infinite.
        """
        receipt = copy.deepcopy(self.receipt)
        receipt.add(self._meters["train"].pending())
        return receipt

    def write(self, directory: str | Path, *, total_steps: int | None = None) -> None:
        """Write the receipt so far and the safety tokens into a directory; warn, once, if the model has drifted.

        One rank may do so alone. For what all ranks have measured, every rank calls `flush` with a `reduce` before.

        Args:
            directory: Made if it is not there.
            total_steps: Optimiser steps that your loop has taken, by its own count, from which `verify` sees steps
                without the constraint. Trainers write theirs themselves.

        Raises:
            ReceiptError: The constraint has counted more steps than that.
            NonFiniteError: One of the metrics is NaN or infinite.
        """
        receipt = self.so_far
        if total_steps is not None:
            receipt.count(total_steps)
        receipt.write(directory)
        file = Path(directory) / TOKENS_FILE
        file.parent.mkdir(exist_ok=True)
        self._tokens.save(file)
        drifted = drift_warning(receipt)
        if drifted and not self._warned:
            warnings.warn(f"PACT: {drifted}", stacklevel=2)
            self._warned = True


def _metrics(terms: Sequence[Term]) -> list[str]:
    return list(dict.fromkeys(name for term in terms for name in term.metrics))
