"""Full fine-tuning of sharded parameters (FSDP2) with a table, on several ranks: fsdp_table.py FOLDER.

Each rank compares its steps with those of a whole model that has a copy as its reference. For test_table_ranks.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from leaving import leave
from loop import TERMS, TOKENIZER, a_batch, settings
from tiny import tiny_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pact_plugin import PactConstraint
from pact_plugin.terms.step import Step


def batch_of(rank: int) -> dict[str, torch.Tensor]:
    return a_batch(rank, rows=2, width=10 + 3 * rank)


def steps_of(
    model: Any, constraint: PactConstraint, batches: dict[int, Any], mine: int, *, average: bool
) -> list[tuple[float, float]]:
    """Task loss and constraint of this rank's batch in three steps."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.05), []
    for step in range(1, 4):
        for rank, batch in batches.items():
            with constraint.watch(batch):
                task = model(**batch).loss
            added = constraint.loss(batch, Step(step))
            ((task + added) / (len(batches) if average else 1)).backward()
            if rank == mine:
                found.append((task.item(), added.item()))
        optimizer.step()
        optimizer.zero_grad()
    return found


def compare(folder: Path, terms: str, rank: int, ranks: int) -> None:
    model = tiny_model().train()
    constraint = PactConstraint(model, TOKENIZER, settings(store=folder, **TERMS[terms]))
    assert constraint.reference.choice.source == "itself"
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Rank 0 fills nearly everything, and the others must take part in each of its passes.
    own = [batch_of(other) for other in range(ranks)] if rank == 0 else []
    constraint.fill([*own, a_batch(7, rows=1)], tokens_per_pass=16, progress=False)
    ours = steps_of(model, constraint, {rank: batch_of(rank)}, rank, average=False)

    whole = tiny_model().train()
    copied = PactConstraint(whole, TOKENIZER, settings(**TERMS[terms]))
    assert copied.reference.choice.name == "copy"
    everyone = {other: batch_of(other) for other in range(ranks)}
    expected = steps_of(whole, copied, everyone, rank, average=True)
    for (task, added), (whole_task, whole_added) in zip(ours, expected, strict=True):
        assert task == pytest.approx(whole_task, rel=1e-3)
        assert added == pytest.approx(whole_added, rel=1e-3, abs=1e-4)
    assert constraint.reference.table.documents == 2 * ranks + ranks
    assert len(list(folder.glob("*.shard"))) == ranks


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    for terms in TERMS:
        compare(folder / terms, terms, distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
