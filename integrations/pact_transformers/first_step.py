"""Looks at the first step: that it calls the constraint, and what the model divides its loss by.

Easing takes back a part of the loss with the denominator that was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from pact_plugin.data.positions import IGNORE_INDEX
from pact_plugin.errors import AdapterError
from pact_plugin.model.head import language_head
from pact_plugin.model.task_loss import require_denominator, summed_loss
from pact_plugin.model.wrappers import ambient_autocast, is_compiled, peft_model, text_config, unwrap


def never_called(trainer: Any) -> AdapterError:
    """The error of a trainer whose object has a `compute_loss` in place of the class's, which adds the constraint."""
    return AdapterError(
        "`compute_loss` was replaced on the trainer itself, so the constraint would never be called",
        key="trainer",
        value=type(trainer).__name__,
        remedy="Remove the plugin or the code that replaces it, or override it in a subclass.",
    )


class CheckFirstStep(TrainerCallback):
    """Compares the loss of every micro-batch of the first step with the sum over its labels, where easing is on.

    A loss that the trainer computes outside of the model is the trainer's own, and is not measured.

    Args:
        trainer: The constrained trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._begun = self._ended = False
        self._handles: list[Any] = []
        self._targets: Tensor | None = None
        self._hidden: Tensor | None = None
        self._summed: tuple[float, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, as after a first step that ran out of memory (`auto_find_batch_size`)."""
        self.stop()
        self._begun = False
        self._trainer._pact_begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch the model from the first micro-batch on."""
        eased = self._trainer.pact.config.eases and getattr(args, "loss_type", None) != "dft"
        if self._begun or not eased:
            return
        self._begun = True
        # Outside of the wrappers, so that nothing but the hidden states is looked at inside of a compiled model.
        model: nn.Module = self._trainer.model_wrapped
        self._head = language_head(self._trainer.model)
        self._later = is_compiled(model)
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            self._head.decoder.register_forward_hook(self._see),
            model.register_forward_hook(self._compare, with_kwargs=True),
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch no more; once, see that the step was constrained, as one with another `compute_loss` is not."""
        self.stop()
        receipt = self._trainer.pact.record.receipt
        if not self._ended and not (receipt.steps and receipt.steps[-1][1] >= state.global_step):
            raise never_called(self._trainer)
        self._ended = True

    def stop(self) -> None:
        """Leave the model as it was; also after a step that raised."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._targets = self._hidden = self._summed = None

    def _enter(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._targets = self._hidden = self._summed = None
        if model.training:
            self._targets = _targets(kwargs)

    def _see(self, decoder: nn.Module, args: Any, output: Any) -> None:
        if self._later:
            self._hidden = output.last_hidden_state
        elif self._targets is not None and self._summed is None:
            # At once: a head that is spread over ranks is whole inside of the model alone.
            hidden = output.last_hidden_state
            with ambient_autocast(hidden.device, cached=False):
                self._summed = summed_loss(self._head, hidden, self._targets)

    def _compare(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        loss = getattr(output, "loss", None)
        targets, self._targets = self._targets, None  # so the anchors' passes are not compared
        if targets is None or loss is None:
            return
        if self._later and self._hidden is not None:
            self._summed = summed_loss(self._head, self._hidden, targets)
        if self._summed is None or self._summed[1] == 0:
            return
        named = kwargs.get("num_items_in_batch")
        beside = _orthogonality(self._trainer.model)
        added = [one + beside for one in _router_losses(self._trainer.model, output)]
        require_denominator(loss.item(), *self._summed, None if named is None else int(named), added)


@contextmanager
def first_step_checked(trainer: Any) -> Iterator[None]:
    """With a `CheckFirstStep` among the trainer's callbacks."""
    check = CheckFirstStep(trainer)
    trainer.add_callback(check)
    try:
        yield
    finally:
        check.stop()
        trainer.remove_callback(check)


def _targets(kwargs: dict[str, Any]) -> Tensor | None:
    """[B, T] the label that each position predicts; of a trainer that keeps only some logits, none elsewhere."""
    if kwargs.get("shift_labels") is not None:
        return kwargs["shift_labels"]
    labels = kwargs.get("labels")
    if labels is None:
        return None
    targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
    kept, ids = kwargs.get("logits_to_keep"), kwargs.get("input_ids")
    if ids is None or targets.shape == ids.shape:
        return targets
    whole = torch.full_like(ids, IGNORE_INDEX)
    # Either the positions, or how many of the last.
    whole[:, kept if torch.is_tensor(kept) else slice(-targets.shape[1], None)] = targets
    return whole


def _router_losses(model: Any, output: Any) -> list[float]:
    """What a mixture of experts may have added to its cross-entropy.

    The coefficient is the model's or its configuration's, of which TRL changes the latter alone.
    """
    routers = getattr(output, "aux_loss", None)
    if not torch.is_tensor(routers):
        return [0.0]
    holders = (unwrap(model), text_config(model))
    return [routers.item() * float(getattr(holder, "router_aux_loss_coef", 0.0)) for holder in holders]


def _orthogonality(model: Any) -> float:
    """What AdaLoRA adds to the loss: how far its factors are from orthogonal (arXiv 2303.10512, section 3.1)."""
    tuner: Any = getattr(peft_model(model), "base_model", None)
    settings = getattr(tuner, "peft_config", {}).get(getattr(tuner, "trainable_adapter_name", None))
    weight = getattr(settings, "orth_reg_weight", 0.0)
    if not weight:
        return 0.0
    distances = []
    for name, factor in tuner.named_parameters():
        of = set(name.split("."))
        if tuner.trainable_adapter_name in of and of & {"lora_A", "lora_B"} and factor.numel():
            gram = factor @ factor.T if "lora_A" in of else factor.T @ factor
            distances.append((gram - torch.eye(len(gram), device=gram.device)).norm().item())
    return float(weight) * sum(distances) / max(len(distances), 1)
