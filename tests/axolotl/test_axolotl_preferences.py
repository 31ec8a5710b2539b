"""`axolotl train` with `rl: dpo`: the anchors are held, also over an interruption."""

from __future__ import annotations

import json
from typing import Any

import pytest
from axolotl_runs import LORA, Run, Workshop
from command_runs import SHORT

NAMES = {"pact/loss", "pact/anchor_divergence", "pact/refusal_shift"}


def preferences(workshop: Workshop, **changes: Any) -> dict[str, Any]:
    """The settings of a run on pairs of answers."""
    file = workshop.folder / "pairs.jsonl"
    rows = [
        {
            "messages": [{"role": "user", "content": f"How do I write {i}?" if i % 2 else SHORT[i // 2]}],
            "chosen": {"role": "assistant", "content": "Sure, here is " + "one two " * (i % 4)},
            "rejected": {"role": "assistant", "content": "I can't help." + " no" * (i % 3)},
        }
        for i in range(24)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "path": str(file),
        "type": "chat_template.default",
        "field_messages": "messages",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "message_property_mappings": {"role": "role", "content": "content"},
    }
    return {
        "rl": "dpo",
        "datasets": [data],
        "dataset_prepared_path": str(workshop.folder / "pairs"),
        "pact": workshop.named_tokens,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "save_steps": 2,
    } | changes


def assert_held(run: Run, steps: int) -> None:
    for entry in run.steps:
        assert {name for name in entry if name.startswith("pact/")} == NAMES
    assert (run.receipt["terms"], run.receipt["steps"]) == (["anchors"], [[1, steps]])
    assert run.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "log 2, where DPO begins"
    assert run.steps[0]["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    assert run.steps[-1]["pact/anchor_divergence"] > 1e-5
    done = run.verify()
    assert done.stdout.startswith(f"constrained: {steps} steps"), done.stderr


@pytest.mark.parametrize("changes", [LORA, {"learning_rate": 1e-3}], ids=["lora", "full"])
def test_dpo_interrupted_and_resumed(workshop, request, changes):
    name = request.node.callspec.id
    settings = preferences(workshop, **changes)
    whole = workshop.train(f"{name}-whole", **settings).ok()
    assert_held(whole, 4)
    assert "PACT: preferences have no next-token labels to ease, so anchors alone are held" in whole.log
    assert "PACT: constrained; weight 10, anchors, 5 safety tokens" in whole.log
    first = whole.checkpoints[0]  # another run would draw another adapter
    resumed = workshop.train(f"{name}-on", **settings, resume_from_checkpoint=str(first)).ok()
    assert_held(resumed, 4)
    for metric in ("loss", *NAMES):
        ours, theirs = ([entry[metric] for entry in run.steps] for run in (resumed, whole))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6), metric
