"""Optimiser steps on several ranks beside the same steps in one process: rank_steps.py FOLDER ddp|fsdp2.

Each step has two micro-batches on each rank, with responses of unequal length, of which one rank has none in one of
its micro-batches. One process sees all of them in one padded batch. For test_ranks.py.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from leaving import leave
from peft import get_peft_model
from plain import anchor_divergence
from sft import TOKENIZER, TOKENS, lora
from tiny import tiny_model
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.errors import ConfigError, StoreError

STEPS, ACCUMULATION = 2, 2
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    train: str
    reference: str
    objective: str = "confidence"
    first_n: int | str = "all"
    anchors: int = 0
    hold: str = "all"

    def config(self, store: Path) -> PactConfig:
        return PactConfig(
            safety_tokens=TOKENS,
            reference=self.reference,
            objective=self.objective,
            first_n=self.first_n,
            anchors=self.anchors,
            hold=self.hold,
            store=store if self.reference == "stored" else None,
        )


def cases(wrapper: str) -> Iterator[Case]:
    for train, objective in itertools.product(("lora", "full"), ("confidence", "published")):
        for first_n in ("all", 3):
            yield Case(train, "stored", objective, first_n)
            if train == "lora":
                yield Case(train, "adapter_off", objective, first_n)
            elif wrapper == "ddp":
                yield Case(train, "frozen_copy", objective, first_n)
    for case in (Case("lora", "stored"), Case("lora", "adapter_off"), Case("full", "stored")):
        yield replace(case, anchors=8)
        yield replace(case, anchors=8, hold="anchors")
    if wrapper == "ddp":
        yield Case("full", "frozen_copy", anchors=8)


def build(train: str) -> Any:
    model = tiny_model().train()
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
    model: Any, constraint: PactConstraint, batch: Batch, count: int, ranks: int, step: int
) -> Tensor:
    """Task and constraint, as their sum over tokens / `count` · `ranks`."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with constraint.watch(batch):
        logits = model(**inputs).logits
    task = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    added = constraint.loss(
        batch,
        num_items_in_batch=count,
        world_size=ranks,
        step=step,
        micro_batches=ACCUMULATION,
        empty_ok=True,
    )
    return task / count * ranks + added


def anchors_of(
    alone: Any, aligned: Any, constraint: PactConstraint, count: int, ranks: int, step: int
) -> Tensor:
    """The anchors of every rank's micro-batches, each by its part of the tokens; 0 where there are none."""
    total = torch.zeros(())
    if constraint.anchors is None:
        return total
    for rank, number in itertools.product(range(ranks), range(ACCUMULATION)):
        tokens = (micro_batch(rank, number, step)["labels"][:, 1:] != -100).sum()
        chosen = constraint.anchors.chosen(step + 1, number, rank, ACCUMULATION)
        documents = [constraint.anchors.documents[i] for i in chosen]
        mean = anchor_divergence(alone, aligned, documents, torch.tensor(TOKENS.positive.ids))
        total = total + mean * tokens / count
    return total


def wrap(model: Any, wrapper: str, ranks: int) -> Any:
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (ranks,))
    decoder = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def no_sync(model: Any, last: bool) -> AbstractContextManager[Any]:
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    model.set_requires_gradient_sync(last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(case: Case, wrapper: str, store: Path, rank: int, ranks: int) -> None:
    model = build(case.train)
    constraint = PactConstraint(model, TOKENIZER, case.config(store))
    wrapped = wrap(model, wrapper, ranks)
    mine = [[micro_batch(rank, number, step) for number in range(ACCUMULATION)] for step in range(STEPS)]
    if case.reference == "stored":
        constraint.fill([batch for step in mine for batch in step], model=wrapped, progress=False)

    alone, aligned, anchored = build(case.train), build(case.train), 0.0
    # Reads what the ranks have stored. Its anchors are those of `anchors_of`.
    expected = PactConstraint(alone, TOKENIZER, case.config(store))
    expected.anchors = None
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (model, alone)
    ]
    for step in range(STEPS):
        everyone = together([micro_batch(r, n, step) for r in range(ranks) for n in range(ACCUMULATION)])
        count = int((everyone["labels"][:, 1:] != -100).sum())
        loss = torch.zeros(())
        for number, batch in enumerate(mine[step]):
            with no_sync(wrapped, number == ACCUMULATION - 1):
                part = loss_of(wrapped, constraint, batch, count, ranks, step + 1)
                part.backward()
            loss += part.detach() / ranks
        distributed.all_reduce(loss)
        extra = anchors_of(alone, aligned, constraint, count, ranks, step)
        expected_loss = (
            loss_of(alone, expected, everyone, count, 1, step + 1) + constraint.config.weight * extra
        )
        anchored += extra.item() * count
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
    metrics = constraint.metrics("train", summed)
    theirs = expected.metrics()
    assert metrics["pact/positions"] == theirs["pact/positions"]
    if case.anchors:
        chosen = [i for r in range(ranks) for i in constraint.anchors.chosen(1, 0, r, ACCUMULATION)]
        assert len(set(chosen)) == len(chosen) == 8 // ACCUMULATION
        assert anchored > 1e-5
        found = metrics["pact/anchor_divergence"] / metrics["pact/loss"]
        held = theirs["pact/divergence"] * theirs["pact/positions"] if case.hold == "all" else 0.0
        both = anchored / (anchored + held)
        assert constraint.config.weight * found == pytest.approx(both, rel=1e-2)


def miss(folder: Path, ranks: int) -> None:
    """A document that is not stored stops sharded training: a pass of one rank alone would wait for the others."""
    model = build("lora")
    constraint = PactConstraint(model, TOKENIZER, Case("lora", "stored").config(folder))
    wrapped = wrap(model, "fsdp2", ranks)
    constraint.fill([micro_batch(0, 0, 0)], model=wrapped, progress=False)
    with pytest.raises(StoreError, match=r"is not stored .* sharded over the ranks"):
        loss_of(wrapped, constraint, micro_batch(0, 0, 9), 1, ranks, 1)


def reentrant() -> None:
    """Checkpointing whose backward passes are each by themselves would leave the ranks with different gradients."""
    model = build("full")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    constraint = PactConstraint(model, TOKENIZER, Case("full", "frozen_copy", anchors=8).config(Path()))
    with pytest.raises(ConfigError, match=r"gradient_checkpointing_kwargs.*use_reentrant: false"):
        loss_of(DistributedDataParallel(model), constraint, micro_batch(0, 0, 0), 1, 2, 1)
    model = build("full")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    unset = PactConfig(safety_tokens=TOKENS, reference="frozen_copy")
    constraint = PactConstraint(model, TOKENIZER, unset)
    assert constraint.anchors is not None
    with pytest.warns(UserWarning, match=r"no anchors in this run.*use_reentrant: false"):
        loss_of(DistributedDataParallel(model), constraint, micro_batch(0, 0, 0), 1, 2, 1).backward()
    assert constraint.anchors is None
    assert "pact/anchor_divergence" not in constraint.metrics("train", summed)
    assert constraint.receipt.anchor_prompts == 0


def summed(sums: Tensor) -> Tensor:
    distributed.all_reduce(sums)
    return sums


def main(folder: Path, wrapper: str) -> None:
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    for number, case in enumerate(cases(wrapper)):
        if rank == 0:
            print(case, flush=True)
        compare(case, wrapper, folder / str(number), rank, ranks)
    if wrapper == "fsdp2":
        miss(folder / "miss", ranks)
    else:
        reentrant()
    distributed.destroy_process_group()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
