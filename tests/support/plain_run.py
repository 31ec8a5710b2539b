"""A trainer's run again by hand: full logits, the formulas of `plain`, and a plain optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from both import Recording, probe_of
from loop import anchors_of
from plain import Eased, anchor_divergence, micro_batch_loss
from sft import TOKENIZER, train_logs, weights
from torch import Tensor

from pact_plugin import PactConfig

Batch = dict[str, Tensor]


@dataclass
class Outcome:
    """Of a step.

    Args:
        loss: With gradient.
        tokens: That it counts.
        anchors: The anchors' divergence, without its weight.
        penalty: What the divergences of the data and of the anchors add to the loss.
        eased: Sum of e over the positions that easing looks at, and their number.
    """

    loss: Tensor
    tokens: int
    anchors: float = 0.0
    penalty: float = 0.0
    eased: tuple[float, int] = (0.0, 0)


@dataclass(frozen=True)
class Plain:
    """The loss of an optimiser step by the formulas.

    Args:
        config: Settings of the constraint.
        aligned: The reference: a second copy of the start.
        safety: Ids of the safety tokens.
        anchors: The term of the constrained trainer, which says whose turn it is; None without anchors.
        probe: The linear function by which it eases; None without easing.
        per_micro_batch: Whether each micro-batch has a denominator of its own.
        dft: Whether the task weighs tokens by their own probabilities.
        stored: Whether the reference's log-probabilities at the data were stored as float16.
    """

    config: PactConfig
    aligned: Any
    safety: Tensor
    anchors: Any = None
    probe: Any = None
    per_micro_batch: bool = False
    dft: bool = False
    stored: bool = True

    def step(self, model: Any, batches: Sequence[Batch], number: int) -> Outcome:
        """What a step with these micro-batches comes to."""
        return self.step_of_ranks(model, [batches], number)

    def step_of_ranks(self, model: Any, ranks: Sequence[Sequence[Batch]], number: int) -> Outcome:
        """What a step with these micro-batches of each rank comes to."""
        everything = [
            (rank, place, batch) for rank, own in enumerate(ranks) for place, batch in enumerate(own)
        ]
        whole = sum(_tokens(batch) for *_, batch in everything)
        found = Outcome(torch.zeros(()), whole)
        for rank, micro_batch, batch in everything:
            of_task, parts = self._of_data(model, batch, None if self.per_micro_batch else whole)
            share = 1 / len(everything) if self.per_micro_batch else 1.0
            found.loss = found.loss + of_task * share
            found.penalty += self.config.weight * parts["divergence"] / whole
            found.eased = (found.eased[0] + parts["eased"], found.eased[1] + parts["eased_positions"])
            if self.anchors is None:
                continue
            chosen = self.anchors.schedule.chosen(number, micro_batch, rank, len(ranks[rank]))
            divergence = anchor_divergence(model, self.aligned, self.anchors, chosen, self.safety)
            by_tokens = _tokens(batch) / whole
            found.loss = found.loss + self.config.weight * divergence * (
                share if self.per_micro_batch else by_tokens
            )
            found.anchors += divergence.item() * by_tokens
        found.penalty += self.config.weight * found.anchors
        return found

    def _of_data(self, model: Any, batch: Batch, count: int | None) -> tuple[Tensor, dict[str, float]]:
        easing, hold, probe = self.config.easing, self.config.hold_data, self.probe
        eased = None
        if easing is not None:
            first = None if easing.first == "all" else easing.first
            eased = Eased(probe.weights, probe.bias, TOKENIZER, first)
        return micro_batch_loss(
            model,
            self.aligned,
            batch,
            self.safety,
            weight=self.config.weight,
            easing=eased,
            hold_data=hold is not None,
            hold_first=None if hold is None or hold.first == "all" else hold.first,
            count=count,
            dft=self.dft,
            stored=self.stored,
        )


def _tokens(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def assert_equal_to_a_plain_loop(
    trainer: Any,
    model: Any,
    plain: Callable[..., Plain],
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    weights_within: float = 1e-5,
) -> list[dict[str, float]]:
    """Train, then train again by hand on the batches that the trainer was given; its logs.

    Args:
        trainer: Constrained, and not yet trained.
        model: A second copy of its start.
        plain: The formulas, given the constrained trainer's anchors and probe.
        optimizer: Of parameters: the trainer's own kind.
        weights_within: Absolute tolerance of the final weights.
    """
    start = weights(trainer)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(start[name], parameter) for name, parameter in trained.items())
    recording = Recording(trainer)
    trainer.train()
    with_anchors = trainer.pact.config.has_anchors
    formulas = plain(anchors=anchors_of(trainer.pact) if with_anchors else None, probe=probe_of(trainer))
    stepper, logs = optimizer(list(trained.values())), train_logs(trainer)
    size = trainer.args.gradient_accumulation_steps
    assert len(logs) == trainer.args.max_steps
    steps = []
    for step in range(1, len(logs) + 1):
        outcome = formulas.step(model, recording.batches[(step - 1) * size : step * size], step)
        steps.append(outcome)
        stepper.zero_grad()
        outcome.loss.backward()
        stepper.step()
    assert [log["loss"] for log in logs] == pytest.approx([one.loss.item() for one in steps], abs=1e-5)
    receipt, tokens = trainer.pact.record.receipt, sum(one.tokens for one in steps)
    assert receipt.trained_tokens == tokens
    if "pact/loss" in logs[0]:
        found = [log["pact/loss"] for log in logs]
        assert found == pytest.approx([one.penalty for one in steps], rel=1e-3, abs=2e-6)
    if formulas.probe is not None:
        wanted = [total / count for total, count in (one.eased for one in steps)]
        assert [log["pact/eased"] for log in logs] == pytest.approx(wanted, abs=1e-6)
        assert 0 < sum(wanted) < len(steps), "some are eased and some are not"
    if with_anchors:
        found = [log["pact/anchor_divergence"] for log in logs]
        assert found == pytest.approx([one.anchors for one in steps], rel=1e-3, abs=1e-6)
        mean = sum(one.anchors * one.tokens for one in steps) / tokens
        assert receipt.mean("anchor_divergence") == pytest.approx(mean, rel=1e-3, abs=1e-6)
    final = weights(trainer)
    assert set(final) == set(trained)
    for name, parameter in trained.items():
        torch.testing.assert_close(final[name], parameter.detach(), atol=weights_within, rtol=1e-5)
    assert max((final[name] - start[name]).abs().max() for name in final) > 1e-3
    return logs
