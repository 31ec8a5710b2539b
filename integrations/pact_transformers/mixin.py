"""The Trainer mixin that every Trainer-based adapter shares. It holds no mathematics: that is PactConstraint's."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from pact_plugin.data.facts import DataFacts
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.spec import TrainerParts
from pact_plugin.reference.choose import RunFacts
from pact_plugin.terms.step import Step
from pact_transformers.ahead import backward_ahead
from pact_transformers.data_facts import facts_of, folder_of
from pact_transformers.fill import FillTable
from pact_transformers.first_step import never_called
from pact_transformers.run_mixin import PactRunMixin
from pact_transformers.sharding import (
    refuse_fsdp1_setting,
    refuse_split_sequences,
    require_one_device,
    require_own_inputs,
    tensor_parallel,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pact_plugin.constraint import Constraint

_BATCH_KEYS = ("labels", "input_ids", "shift_labels", "position_ids", "cu_seq_lens_q", "attention_mask")


class PactTrainerMixin(PactRunMixin):
    """Adds a constraint to `transformers.Trainer` and its subclasses; goes before them in the bases.

    The evaluation loss stays the task's; `eval_pact/*` metrics stand beside it.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The trainer's own loss, plus the constraint in training."""
        batch = self._pact_batch(inputs)
        training = self.model.training
        step = Step(
            self.state.global_step + 1,
            micro_batches=getattr(self, "current_gradient_accumulation_steps", 1),  # not before training
            tokens=num_items_in_batch,
            world_size=self._pact_world_size(num_items_in_batch),
        )
        if training and self.pact.config.has_anchors and self._pact_goes_ahead():
            backward_ahead(self, partial(self.pact.ahead, batch, step), step)
        with self.pact.watch(batch):
            result = super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if not training:
            self.pact.observe(batch)
            return result
        constraint = self.pact.loss(
            batch,
            step,
            task_loss="dft" if getattr(self.args, "loss_type", None) == "dft" else "nll",
        )
        if self.pact.config.weight == 0:
            return result
        return with_constraint(result, constraint)

    def _pact_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Labels, ids and boundaries of whole rows, of a batch as the trainer's own loss is given it."""
        return {key: inputs[key] for key in _BATCH_KEYS if key in inputs}

    def _pact_world_size(self, num_items_in_batch: Any) -> int:
        """The factor by which the trainer scales a loss that all ranks' tokens normalise (DDP averages it away)."""
        if num_items_in_batch is None or not self.args.average_tokens_across_devices:
            return 1
        return self.accelerator.num_processes // tensor_parallel(self)


def with_constraint(result: Any, constraint: Tensor) -> Any:
    """What a trainer's `compute_loss` gave, a loss or that and the outputs, with the constraint added to the loss."""
    if isinstance(result, tuple):
        return result[0] + constraint.to(result[0].device), *result[1:]
    return result + constraint.to(result.device)


def constrain(
    trainer: Any,
    constraint: Constraint,
    *known: type,
    mixin: type[PactRunMixin] = PactTrainerMixin,
    own_loss: bool | None = None,
) -> Any:
    """Turn a trainer into its constrained class, in place.

    Args:
        trainer: The trainer.
        constraint: Its constraint.
        *known: Trainer classes whose loss is the mean of the next-token cross-entropy.
        mixin: What adds the constraint to the trainer's loss.
        own_loss: Whether the trainer was given a loss function; by default, whether it has one.

    Raises:
        AdapterError: Easing is on and the task loss is the user's own or smoothed; or its own `compute_loss`, set on
            the object, would be called in place of the class's; or ranks share their inputs and there are anchors.
    """
    if constraint.config.eases:
        own = trainer.compute_loss_func is not None if own_loss is None else own_loss
        _require_plain_task_loss(trainer, known, own_loss=own)
    require_own_inputs(trainer, constraint.config)
    if "compute_loss" in vars(trainer):
        raise never_called(trainer)
    # One that was set on the object would be called in place of the class's, which writes the receipt. It runs inside.
    trainer._pact_own_train = vars(trainer).pop("train", None)
    kind = type(trainer)
    trainer.__class__ = type(f"Pact{kind.__name__}", (mixin, kind), {})
    trainer.pact = constraint
    trainer.add_callback(FillTable(trainer))
    return trainer


def trainer_parts(trainer: Any, folder: str | None, *, labels: bool = True) -> TrainerParts:
    """The model, the tokenizer and the data of a Trainer, which stays as it is.

    Args:
        trainer: The trainer.
        folder: Where the configuration wants the table of predictions; in the output folder when None.
        labels: Whether its data has labels, as not with preferences.

    Raises:
        AdapterError: The trainer is constrained already, has trained, makes its model anew, has one with an encoder, or
            is set up in a way that cannot be constrained.
    """
    if isinstance(trainer, PactRunMixin) and hasattr(trainer, "pact"):
        raise AdapterError("it is constrained already", key="trainer", remedy="Attach the constraint once.")
    if trainer.state.global_step > 0:
        raise AdapterError(
            "it has trained, so its model is not the aligned one any more",
            key="trainer",
            value=f"{trainer.state.global_step} steps",
            remedy="Attach before training, to a new trainer with the aligned model.",
        )
    if getattr(trainer, "model_init", None) is not None:
        raise AdapterError(
            "each training would begin with another model than the one that is constrained",
            key="model_init",
            remedy="Pass the model itself as `model`; for each trial of a search attach to a new trainer.",
        )
    if trainer.args.n_gpu > 1:
        raise AdapterError(
            "nn.DataParallel is not supported",
            key="n_gpu",
            value=trainer.args.n_gpu,
            remedy="Launch with `accelerate launch` or `torchrun`, or make a single GPU visible.",
        )
    if getattr(getattr(trainer.model, "config", None), "is_encoder_decoder", False):
        raise AdapterError(
            "an encoder-decoder model's labels are not its inputs' next tokens",
            key="model",
            value=type(trainer.model).__name__,
            remedy="Train a causal language model.",
        )
    refuse_fsdp1_setting(trainer)
    refuse_split_sequences(trainer)
    require_one_device(trainer)
    tokenizer = tokenizer_of(trainer)
    if labels:
        run, data = facts_of(trainer, folder)
    else:
        run, data = RunFacts(folder_of(trainer, folder)), DataFacts(labels=False)
    return TrainerParts(trainer.model, tokenizer, run, data, trainer.accelerator.autocast)


def _require_plain_task_loss(trainer: Any, known: Sequence[type], *, own_loss: bool) -> None:
    """Easing takes back part of a plain cross-entropy: refuse any other."""
    foreign = _foreign_loss(trainer, known)
    for key, value in (
        ("compute_loss_func", own_loss),
        ("label_smoothing_factor", trainer.args.label_smoothing_factor),
        ("compute_loss", foreign and f"{foreign.__module__}.{foreign.__qualname__}"),
    ):
        if value:
            raise AdapterError(
                "easing needs a plain next-token cross-entropy",
                key=key,
                value=value,
                remedy=f"Remove `{key}`, or set `easing: false`.",
            )


def _foreign_loss(trainer: Any, known: Sequence[type]) -> type | None:
    """The class that overrides the `compute_loss` of the known trainer classes."""
    for base in type(trainer).__mro__:
        if base in known:
            return None
        if "compute_loss" in vars(base) and base is not PactTrainerMixin:
            return base
    return None


def tokenizer_of(trainer: Any) -> Any:
    """A Trainer's tokenizer, or that of its processor; with the processor's chat template where it has none itself.

    Raises:
        AdapterError: It has none.
    """
    processor = trainer.processing_class
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is None:
        remedy = "Pass `processing_class=tokenizer` to the trainer."
        raise AdapterError("the trainer has no tokenizer", key="processing_class", remedy=remedy)
    template = getattr(processor, "chat_template", None)
    if template and not getattr(tokenizer, "chat_template", None):
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer
