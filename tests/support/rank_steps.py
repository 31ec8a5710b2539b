"""Optimiser steps on several ranks beside the same steps in one process: rank_steps.py FOLDER ddp|fsdp2.

Each step has two micro-batches on each rank, with responses of unequal length, of which one rank has none in one of
its micro-batches. One process sees all of them in one padded batch. For test_ranks.py.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from leaving import leave
from loop import FEW_ANCHORS, anchors_of
from peft import get_peft_model
from plain import anchor_divergence, refusal_shifts
from rank_wrapping import no_sync, wrap
from remembered import remember
from sft import TOKENIZER, TOKENS, lora
from tiny import tiny_model
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.errors import ConfigError, ReferenceModelError, StoreError
from pact_plugin.terms.step import Step

STEPS, ACCUMULATION = 2, 2
RATES = {"lora": 2.0, "full": 0.1}
"""Learning rates by which the second step is seen to have moved."""
Batch = dict[str, Tensor]
DEFAULT: dict[str, Any] = {}
# At weight 3 float32 rounds the published objective's gradient by 2e-5.
TERMS: dict[str, dict[str, Any]] = {
    "easing": {"anchors": False},
    "hold": {"easing": False, "anchors": False, "hold_data": True},
    "both, of the first": {"easing": {"first": 2}, "anchors": False, "hold_data": {"first": 3}},
    "published": {"weight": 1, "easing": False, "anchors": False, "advanced": {"published": True}},
    "published, of the first": {
        "weight": 1,
        "easing": False,
        "anchors": False,
        "advanced": {"published": {"first": 3}},
    },
    "default": DEFAULT,
    "few anchors": {"anchors": FEW_ANCHORS},
    "anchors": {"easing": False, "anchors": FEW_ANCHORS},
    "all": {"hold_data": True, "anchors": FEW_ANCHORS},
    "few anchors, in chunks": {"anchors": FEW_ANCHORS, "advanced": {"chunk_size": 2}},
}
DATA = ("easing", "hold", "both, of the first", "published", "published, of the first")
"""Those that look at the data alone."""


@dataclass(frozen=True)
class Case:
    train: str
    terms: str
    table: bool = True
    checkpointing: bool | None = None
    """Whether it is reentrant; None where there is none."""
    ahead: bool = False
    """Whether the anchors have a backward pass of their own."""
    other: bool = False
    """Whether another model is the aligned one, as with `reference: PATH`."""
    root: bool | None = None
    """Of FSDP2: whether the root is sharded again after a forward pass, as Axolotl does; None has torch's default."""
    accelerate: bool = False
    """Of FSDP2: whether Accelerate shards the model; its 1.15 shards the head by itself."""

    @property
    def reference(self) -> dict[str, Any]:
        return {"reference_model": tiny_model(seed=4)} if self.other else {}

    def config(self, folder: Path, *, anchors: bool = True) -> PactConfig:
        """Its settings; without anchors for the process that computes these by itself."""
        settings = {"safety_tokens": TOKENS} | TERMS[self.terms]
        if self.table:
            settings["advanced"] = settings.get("advanced", {}) | {"store": folder}
        config = PactConfig(**settings)
        return config if anchors else config.model_copy(update={"anchors": None})

    @property
    def has_anchors(self) -> bool:
        return TERMS[self.terms].get("anchors", True) is not False


def cases(wrapper: str) -> Iterator[Case]:
    """Each term with both kinds of training, and with a table and without; all of it where there are anchors.

    A copy of the parameters cannot be had where these are sharded (`copied`).
    """
    with_table = "lora" if wrapper == "ddp" else "full"
    for train, terms in itertools.product(("lora", "full"), DATA):
        yield Case(train, terms, table=train == with_table)
    for train in ("lora", "full"):
        yield Case(train, "anchors", table=False)  # which ask for no table
        # Reading the bundled anchors takes most of a case's time.
        for terms in ("default" if train == with_table else "few anchors", "all"):
            yield Case(train, terms)
            if train == "lora" or wrapper == "ddp":
                yield Case(train, terms.replace("default", "few anchors"), table=False)
        if wrapper == "fsdp2":  # of which the ranks have unlike numbers
            yield Case(train, "few anchors, in chunks", root=True)
            yield Case(train, "few anchors, in chunks", accelerate=True)
    for train, reentrant in itertools.product(("lora", "full"), (False, True)):
        if wrapper == "ddp":
            yield Case(train, "few anchors", checkpointing=reentrant, ahead=True)
        else:  # each backward pass reduces and adds up what it has
            yield Case(train, "few anchors", checkpointing=reentrant)
    for train, table in itertools.product(("lora", "full"), (True, False)):
        yield Case(train, "all", table=table, ahead=wrapper == "ddp", other=True)
    if wrapper == "ddp":
        for train in ("lora", "full"):
            yield Case(train, "all", ahead=True)


def build(train: str, checkpointing: bool | None = None) -> Any:
    model = tiny_model().train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    if train == "full":
        return model
    torch.manual_seed(0)
    return get_peft_model(model, lora()).train()


def micro_batch(rank: int, number: int, step: int) -> Batch:
    """Two rows; on rank 1 the first of each step has no response."""
    generator = torch.Generator().manual_seed(100 * step + 10 * number + rank)
    width = 9 + 4 * rank + 2 * number
    ids = torch.randint(3, len(TOKENIZER), (2, width), generator=generator)
    labels = ids.clone()
    labels[0, : 4 + number], labels[1, :-2] = -100, -100
    if (rank, number) == (1, 0):
        labels[:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def together(batches: list[Batch]) -> Batch:
    """One batch, padded on the right."""
    width = max(batch["labels"].shape[1] for batch in batches)
    fill = {"input_ids": TOKENIZER.pad_token_id, "labels": -100, "attention_mask": 0}
    return {
        key: torch.cat(
            [torch.nn.functional.pad(b[key], (0, width - b[key].shape[1]), value=value) for b in batches]
        )
        for key, value in fill.items()
    }


def loss_of(
    model: Any, constraint: PactConstraint, batch: Batch, step: Step, *, task_alone: bool = False
) -> Tensor:
    """Task and constraint, as their sum over tokens / `step.tokens` · `step.world_size`."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with constraint.watch(batch):
        logits = model(**inputs).logits
    task = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    task = task / step.tokens * step.world_size
    return task if task_alone else task + constraint.loss(batch, step)


def anchors_term(
    alone: Any, aligned: Any, constraint: PactConstraint, count: int, ranks: int, step: int
) -> Tensor:
    """The anchors of every rank's micro-batches, each by its part of the tokens."""
    total, pool = torch.zeros(()), anchors_of(constraint)
    for rank, number in itertools.product(range(ranks), range(ACCUMULATION)):
        tokens = (micro_batch(rank, number, step)["labels"][:, 1:] != -100).sum()
        chosen = pool.schedule.chosen(step + 1, number, rank, ACCUMULATION)
        mean = anchor_divergence(alone, aligned, pool, chosen, torch.tensor(TOKENS.positive.ids))
        total = total + mean * tokens / count
    return total


def everyones(pool: Any, step: int, ranks: int) -> list[int]:
    """The anchors of a step, counted from 0, on all ranks."""
    turns = itertools.product(range(ranks), range(ACCUMULATION))
    return [i for rank, number in turns for i in pool.schedule.chosen(step + 1, number, rank, ACCUMULATION)]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(case: Case, wrapper: str, folder: Path, rank: int, ranks: int) -> None:
    model = build(case.train, case.checkpointing)
    constraint = PactConstraint(model, TOKENIZER, case.config(folder), **case.reference)
    wrapped = wrap(model, wrapper, ranks, root=case.root, accelerate=case.accelerate)
    mine = [[micro_batch(rank, number, step) for number in range(ACCUMULATION)] for step in range(STEPS)]
    if case.table:
        constraint.fill([batch for step in mine for batch in step], model=wrapped, progress=False)

    alone, anchored, tokens, shifts = build(case.train), 0.0, 0, list[float]()
    aligned = case.reference.get("reference_model") or build(case.train)
    # It reads the ranks' table.
    expected = PactConstraint(alone, TOKENIZER, case.config(folder, anchors=False), **case.reference)
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=RATES[case.train])
        for m in (model, alone)
    ]
    for step in range(STEPS):
        everyone = together([micro_batch(r, n, step) for r in range(ranks) for n in range(ACCUMULATION)])
        count = int((everyone["labels"][:, 1:] != -100).sum())
        loss = torch.zeros(())
        for number, batch in enumerate(mine[step]):
            with no_sync(wrapped, number == ACCUMULATION - 1):
                turn = Step(step + 1, ACCUMULATION, count, ranks)
                if case.ahead:
                    constraint.ahead(batch, turn).backward()
                part = loss_of(wrapped, constraint, batch, turn)
                part.backward()
            loss += part.detach() / ranks
        distributed.all_reduce(loss)
        whole_step = Step(step + 1, tokens=count)
        # Anchors alone leave nothing to the other constraint.
        expected_loss = loss_of(alone, expected, everyone, whole_step, task_alone=not expected.terms)
        if case.has_anchors:
            extra = anchors_term(alone, aligned, constraint, count, ranks, step)
            anchored += extra.item() * count
            pool = anchors_of(constraint)
            chosen = everyones(pool, step, ranks)
            shifts += refusal_shifts(alone, aligned, pool, chosen, torch.tensor(TOKENS.positive.ids))
            expected_loss = expected_loss + constraint.config.weight * extra
        tokens += count
        expected_loss.backward()
        torch.testing.assert_close(loss, expected_loss.detach(), atol=1e-5, rtol=1e-5)
        for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
            if theirs.requires_grad:
                torch.testing.assert_close(
                    whole(ours.grad), theirs.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    measured = {"anchor_divergence": anchored / tokens, "refusal_shift": sum(shifts) / max(len(shifts), 1)}
    compare_metrics(case, constraint, expected, measured, ranks)


def compare_metrics(
    case: Case, constraint: PactConstraint, expected: PactConstraint, anchored: dict[str, float], ranks: int
) -> None:
    """Of all ranks with those of one process, anchors apart, whose means are given."""
    found = constraint.metrics("train", summed)
    theirs = expected.metrics() if expected.terms else {}
    penalty = theirs.pop("pact/loss", 0.0)
    if case.has_anchors:
        chosen = everyones(anchors_of(constraint), 0, ranks)
        assert len(set(chosen)) == len(chosen) >= 2 * ranks  # each micro-batch has its own
        mean = anchored["anchor_divergence"]
        assert mean > 1e-5
        assert found.pop("pact/anchor_divergence") == pytest.approx(mean, rel=1e-2)
        assert found.pop("pact/refusal_shift") == pytest.approx(anchored["refusal_shift"], rel=1e-2, abs=1e-5)
        assert abs(anchored["refusal_shift"]) > 1e-4
        penalty += constraint.config.weight * mean
    assert found.pop("pact/loss", 0.0) == pytest.approx(penalty, rel=1e-2)
    assert found == pytest.approx(theirs, rel=1e-3)
    assert 0 < found.get("pact/eased", 0.5) < 1
    if expected.terms:
        ours, whole_run = constraint.record.receipt, expected.record.receipt
        assert (ours.trained_tokens, ours.positions) == (whole_run.trained_tokens, whole_run.positions)


def miss(folder: Path, ranks: int) -> None:
    """A document that is not in the table stops sharded training: one rank's pass would wait for the others."""
    model = build("lora")
    constraint = PactConstraint(model, TOKENIZER, Case("lora", "hold").config(folder))
    wrapped = wrap(model, "fsdp2", ranks)
    constraint.fill([micro_batch(0, 0, 0)], model=wrapped, progress=False)
    with pytest.raises(StoreError, match=r"is not in the table .* sharded over the ranks"):
        loss_of(wrapped, constraint, micro_batch(0, 0, 9), Step(1, 1, 1, ranks))


def copied(ranks: int) -> None:
    """FSDP2 puts the parameters in training back in place of a copy: the model would be compared with itself."""
    config = Case("full", "hold", table=False).config(Path())
    match = r"a copy of the parameters, which are sharded.*advanced: \{store: FOLDER\}"
    model = build("full")
    constraint = PactConstraint(model, TOKENIZER, config)
    wrapped = wrap(model, "fsdp2", ranks)
    with pytest.raises(ReferenceModelError, match=match):
        loss_of(wrapped, constraint, micro_batch(0, 0, 0), Step(1, 1, 1, ranks))
    with pytest.raises(ReferenceModelError, match=match):
        PactConstraint(wrap(build("full"), "fsdp2", ranks), TOKENIZER, config)


def unknown_on_one_rank(folder: Path, rank: int, ranks: int) -> None:
    """In an evaluation the ranks agree on it before any of them reads a head that needs all."""
    model = build("full")
    constraint = PactConstraint(model, TOKENIZER, Case("full", "hold").config(folder))
    wrapped = wrap(model, "fsdp2", ranks, accelerate=True)
    known, other = micro_batch(0, 1, 0), micro_batch(0, 1, STEPS)
    constraint.fill([known], model=wrapped, progress=False)
    loss_of(wrapped, constraint, known, Step(1, 1, 1, ranks)).backward()  # then the aligned model is gone
    batch = other if rank == 0 else known
    with torch.no_grad(), constraint.watch(batch):
        wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    constraint.observe(batch)
    assert constraint.metrics("eval", summed) == {}


def reentrant() -> None:
    """Checkpointing whose backward passes are each by themselves would leave the ranks with different gradients."""
    for settings in ({}, {"easing": False}):
        model = build("full")
        model.gradient_checkpointing_enable({"use_reentrant": True})
        config = PactConfig(safety_tokens=TOKENS, anchors=FEW_ANCHORS, **settings)
        constraint = PactConstraint(model, TOKENIZER, config)
        with pytest.raises(
            ConfigError, match=r"gradient_checkpointing_kwargs.*constraint\.ahead.*use_reentrant: false"
        ):
            loss_of(DistributedDataParallel(model), constraint, micro_batch(0, 0, 0), Step(1, 1, 1, 2))


def different(rank: int) -> None:
    """FSDP's memory-saving loading leaves the weights of all ranks but the first empty until they are sharded."""
    model = build("lora")
    with torch.no_grad():
        model.get_base_model().lm_head.weight[0, 0] += rank
    with pytest.raises(ReferenceModelError, match=r"different weights.*cpu_ram_efficient_loading: false"):
        PactConstraint(model, TOKENIZER, {"safety_tokens": TOKENS})


def elsewhere(folder: Path, rank: int) -> None:
    """As on two nodes without a common file system, each of which has a folder of that name."""
    constraint = PactConstraint(build("lora"), TOKENIZER, Case("lora", "hold").config(folder / str(rank)))
    with pytest.raises(StoreError, match="do not see the same files"):
        constraint.fill([micro_batch(rank, 0, 0)], progress=False)
    assert rank or not list(folder.rglob("*.seen"))  # the first one removes it


def summed(sums: Tensor) -> Tensor:
    distributed.all_reduce(sums)
    return sums


def main(folder: Path, wrapper: str) -> None:
    remember()
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    for number, case in enumerate(cases(wrapper)):
        if rank == 0:
            print(case, flush=True)
        compare(case, wrapper, folder / str(number), rank, ranks)
    if wrapper == "fsdp2":
        miss(folder / "miss", ranks)
        copied(ranks)
        unknown_on_one_rank(folder / "unknown", rank, ranks)
    else:
        reentrant()
        different(rank)
        elsewhere(folder / "elsewhere", rank)
    distributed.destroy_process_group()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
