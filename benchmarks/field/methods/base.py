"""What a method is: a way to change the items, the rate or the adapter, and an objective beside the task's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.field.encoding import Batch, padded
from benchmarks.field.pool import Replayed, replayed
from benchmarks.field.start import Start
from pact_plugin.data.generation import Pair
from pact_plugin.judge import is_refusal
from pact_plugin.model.head import LanguageHead, language_head
from pact_plugin.model.wrappers import evaluation_mode
from pact_plugin.reference.pool import Pool


@dataclass
class Trainee:
    """A model in training, before its first step.

    Attributes:
        model: With its adapter, which changes nothing yet; or with every weight in training.
        head: Its decoder and its head.
        start: The aligned model that it is a copy of.
        seed: Of the run.
        kept_seconds: What things took to prepare that other runs share, beyond the time that passed in this one.
    """

    model: Any
    head: LanguageHead
    start: Start
    seed: int
    kept_seconds: float = 0.0
    _has_asked: bool = False

    def asked(self) -> Pool:
        """The answered pool of pact-plugin, whose time counts as this run's, once."""
        begun = time.perf_counter()
        asked = self.start.asked
        if not self._has_asked:
            self.kept_seconds += self.start.asked_seconds - (time.perf_counter() - begun)
            self._has_asked = True
        return asked

    def pool(self) -> Replayed:
        """What baselines replay of it."""
        return replayed(self.asked(), self.start.sizes.pool_tokens)

    def refused(self, prompts: Sequence[str]) -> list[bool]:
        """Whether the aligned model refuses each prompt of the data, by the default judge; their time counts, too."""
        said, seconds = self.start.kept_answers(prompts)
        self.kept_seconds += seconds
        return [is_refusal(said[prompt]) for prompt in prompts]

    @contextmanager
    def aligned(self) -> Iterator[None]:
        """Inside, the head is the aligned model's: no adapter, no dropout, no gradient."""
        if self.start.sizes.train == "lora":
            with evaluation_mode(self.model), torch.no_grad(), self.model.disable_adapter():
                yield
            return
        own, self.head = self.head, language_head(self.start.model)
        try:
            with torch.no_grad():
                yield
        finally:
            self.head = own

    def hidden(self, pairs: Sequence[Pair], where: Callable[[Tensor], Tensor]) -> Float[Tensor, "N d"]:
        """Final hidden states of some prompts with answers.

        Args:
            pairs: The prompts and answers.
            where: From labels [B, T], -100 but for the answers, to the positions [B, T] that are wanted.
        """
        batch = padded(pairs, next(self.head.decoder.parameters()).device)
        read = self.head.decoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )
        states: Tensor = read.last_hidden_state[where(batch["labels"])]
        return states


def before_answers(labels: Tensor) -> Tensor:
    """The positions that predict the tokens of answers."""
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != -100
    return wanted


def answer_tokens(pairs: Sequence[Pair]) -> Tensor:
    """The tokens of answers, one answer after the other."""
    return torch.tensor([token for _, answer in pairs for token in answer])


class Objective:
    """What a method adds to the task's cross-entropy in each step: nothing, for plain fine-tuning."""

    def watch(self) -> AbstractContextManager[None]:
        """Around the forward pass of the task's batch."""
        return nullcontext()

    def penalty(self, batch: Batch, number: int) -> Float[Tensor, ""] | None:
        """What is added to the task's loss of a batch in step `number`, from 0; in nats."""
        return None

    def backward(self, task: Float[Tensor, ""], penalty: Tensor | None, parameters: Sequence[Tensor]) -> None:
        """Set the gradients of the parameters in training."""
        (task if penalty is None else task + penalty).backward()

    def notes(self) -> dict[str, Any]:
        """What is worth keeping of a run, as plain JSON values."""
        return {}


Make = Callable[[Trainee, float], Objective]
"""From a model in training and the method's strength."""


def nothing(trainee: Trainee, strength: float) -> Objective:
    """No objective beside the task's."""
    return Objective()


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        title: For tables and plots.
        make: Its objective.
        strength: The usual one; None if it has none.
        scales_rate: Whether the strength is a factor of the learning rate.
        scales_adapter: Whether it is a factor of the adapter of plain fine-tuning, which needs no training of its own.
        treatment: What becomes of harmful items; see `treatment.TREATMENTS`.
        config: Settings of pact-plugin; None for other methods.
    """

    title: str
    make: Make = nothing
    strength: float | None = None
    scales_rate: bool = False
    scales_adapter: bool = False
    treatment: str = "none"
    config: dict[str, Any] | None = None
