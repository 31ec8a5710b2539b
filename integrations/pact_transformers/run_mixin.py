"""The Trainer mixin for all of a constrained run but its loss: logs, evaluations, checkpoints, receipt, model card."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pact_plugin.audit.card import AUDIT, block, is_of, read_audit, write_block
from pact_plugin.errors import ConfigError
from pact_transformers.ahead import goes_ahead
from pact_transformers.checkpoints import checkpoint_of
from pact_transformers.first_step import first_step_checked
from pact_transformers.sharding import refuse_fsdp1_setting, require_own_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from pact_plugin.constraint import Constraint


logger = logging.getLogger("pact_plugin")


class PactRunMixin:
    """For `transformers.Trainer` and its subclasses. `pact_receipt.json` lies beside every model that is saved."""

    pact: Constraint
    _pact_ahead: bool | None = None
    _pact_own_train: Callable[..., Any] | None = None
    """A `train` that was set on the trainer itself, as Unsloth's on a GPU is."""
    _pact_checkpoint: Path | None = None
    """The one that the training goes on from."""
    _pact_trained = False
    """Whether the last training has ended; not so while it trains."""
    if TYPE_CHECKING:  # what transformers.Trainer has
        model: Any
        args: Any
        state: Any
        accelerator: Any

    def _pact_goes_ahead(self) -> bool:
        if self._pact_ahead is None:
            self._pact_ahead = goes_ahead(self)
        return self._pact_ahead and torch.is_grad_enabled()

    def _pact_reduce(self, sums: Tensor) -> Tensor:
        # Before the first step the constraint may know the model on the host alone, where NCCL cannot sum.
        return self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the `pact/*` metrics beside the training loss."""
        # Every rank logs a training loss beside its learning rate; another may be logged by one alone.
        if {"loss", "learning_rate"} <= logs.keys():
            logs.update(self.pact.metrics("train", self._pact_reduce))
        super().log(logs, start_time)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Put the `pact/*` metrics of an evaluation beside its loss.

        Rows that are repeated to fill the last batches of several ranks count as often as they are seen.
        """
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        if output.metrics and any(name.endswith("_loss") for name in output.metrics):
            prefix = kwargs.get("metric_key_prefix", "eval")
            measured = self.pact.metrics("eval", self._pact_reduce)
            output.metrics.update({f"{prefix}_{name}": value for name, value in measured.items()})
        return output

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, which all ranks do together: its receipt counts what all have measured."""
        self.pact.record.flush("train", self._pact_reduce)
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model with the receipt and the safety tokens beside it.

        One rank may call it alone. While it trains, the receipt counts what all ranks have measured up to the last log
        or checkpoint, and since then the first rank alone.
        """
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        self._pact_write(output_dir or self.args.output_dir)

    def _pact_write(self, folder: str) -> None:
        record = self.pact.record
        if self.args.should_save:
            record.receipt.total_steps = max(record.receipt.total_steps, self.state.global_step)
            record.write(folder)
            try:  # the card of a checkpoint is written before its numbers
                self._pact_card(folder, only_again=True)
            except ConfigError as error:
                logger.warning("PACT: the model card is left as it is: %s", error)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the trainer's model card, with a block on PACT from the receipt.

        Where an `audit.json` lies in the output folder that is newer than the training, its numbers, too.

        Raises:
            ConfigError: That audit cannot be read.
        """
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if self.is_world_process_zero():  # type: ignore[attr-defined]
            self._pact_card(self.args.output_dir)

    def _pact_card(self, folder: str, *, only_again: bool = False) -> None:
        audit = None
        if self._pact_trained and (Path(folder) / AUDIT).is_file():
            found = read_audit(folder)
            audit = found if is_of(found, self.pact.record.receipt) else None
        write_block(folder, block(self.pact.record.so_far, audit), only_again=only_again)

    def _pact_begin(self) -> None:
        """Begin the record, or go on with the checkpoint's; once more where the trainer tries with smaller batches."""
        self.pact.record.begin()
        if self._pact_checkpoint is not None:
            self.pact.record.resume(self._pact_checkpoint)

    @contextmanager
    def _pact_written_if_broken_off(self) -> Iterator[None]:
        """Write the receipt of a training that fails: frameworks save its model."""
        try:
            yield
        except BaseException:
            try:
                self._pact_write(self.args.output_dir)
            except Exception as error:  # after an accelerator's error even its tensors cannot be read
                logger.warning("PACT: the receipt could not be written: %s", error)
            raise  # what stopped it is more than its receipt

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a resumed run continues its receipt, and any other begins it, as the trainer counts its steps anew.

        The safety tokens and the receipt so far lie in the output folder from the start, in place of any that an
        earlier run has left there, and the whole receipt at the end, also where the model is saved by other means or
        the training is broken off. A table is filled first; a resumed run finds it filled.

        Raises:
            AdapterError: The parameters cannot be read, ranks share their inputs and there are anchors, or the first
                step never called the constraint.
            NoResponseError: No step had a response position.
            ReceiptError: The checkpoint has no receipt, or was constrained by other settings.
            StoreError: The table is another model's, or lacks a document and cannot be filled any more.
        """
        refuse_fsdp1_setting(self)
        require_own_inputs(self, self.pact.config)
        self._pact_checkpoint = checkpoint_of(resume_from_checkpoint, self.args.output_dir)
        self._pact_begin()
        if self.args.should_save:
            self.pact.record.write(self.args.output_dir)
        self._pact_ahead = None  # the model is wrapped and checkpointed in there
        self._pact_trained = False
        train = self._pact_own_train or super().train  # type: ignore[misc]
        with first_step_checked(self), self._pact_written_if_broken_off():
            result = train(resume_from_checkpoint, *args, **kwargs)
        self.pact.record.flush("train", self._pact_reduce)
        self._pact_write(self.args.output_dir)
        self.pact.record.require_response()
        self._pact_trained = True
        return result
