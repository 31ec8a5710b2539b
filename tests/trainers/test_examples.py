"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import run_words
from loop import probe_of
from plain import Eased, micro_batch_loss
from sft import TOKENIZER, TOKENS, completions
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from pact_plugin import PactConfig, PactConstraint
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"
ROWS, EPOCHS, RATE = 12, 3, 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, twelve conversations and safety tokens."""
    folder = tmp_path_factory.mktemp("example")
    tiny_model().save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    TOKENS.save(folder / "tokens.safetensors")
    rows = [{"messages": row["prompt"] + row["completion"]} for row in completions(ROWS)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(
    folder: Path,
    name: str,
    sizes: tuple[int, int],
    *,
    launcher: Sequence[str] = (),
    ranks: int = 0,
    **settings: Any,
) -> list[dict]:
    """What each step of the example logs; without a launcher in a fork for each rank."""
    command = [str(EXAMPLE), "--output", str(folder / name)]
    command += ["--model", str(folder / "model"), "--data", str(folder / "chat.jsonl")]
    command += ["--pact", json.dumps({"safety_tokens": str(folder / "tokens.safetensors"), **settings})]
    command += ["--batch-size", str(sizes[0]), "--accumulation", str(sizes[1])]
    command += ["--epochs", str(EPOCHS), "--learning-rate", str(RATE)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    if not launcher:
        said = run_words(command, environment, folder / f"{name}.log", ranks)
    else:
        command = [sys.executable, *launcher, *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        said = done.stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def whole_data() -> dict[str, torch.Tensor]:
    """All conversations in one padded batch; a step of the example sees them all, in any order."""
    encoded = []
    for row in completions(ROWS):
        prompt = TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = TOKENIZER.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        encoded.append((len(prompt), ids))
    length = max(len(ids) for _, ids in encoded)
    batch = {"input_ids": torch.full((ROWS, length), TOKENIZER.pad_token_id)}
    batch["labels"] = torch.full((ROWS, length), -100)
    for row, (start, ids) in enumerate(encoded):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["labels"][row, start : len(ids)] = torch.tensor(ids[start:])
    return batch


@pytest.fixture(scope="module")
def plain() -> list[tuple[float, dict[str, float]]]:
    """Loss and its parts in each step of a loop written with the formulas alone."""
    model, aligned = tiny_model(), tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    ids, weight = torch.tensor(TOKENS.positive.ids), PactConfig().weight
    constraint = PactConstraint(tiny_model(), TOKENIZER, PactConfig(safety_tokens=TOKENS, anchors=False))
    probe = probe_of(constraint)
    easing = Eased(probe.weights, probe.bias, TOKENIZER, 16)
    steps = []
    for _ in range(EPOCHS):
        loss, parts = micro_batch_loss(
            model, aligned, whole_data(), ids, weight=weight, easing=easing, stored=True
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.append((loss.item(), parts))
    return steps


# `accelerate launch --cpu --num_processes 2` starts a single process (several need MPI).
LAUNCHED: dict[str, dict[str, Any]] = {
    # the last micro-batch is smaller
    "accumulated": {"launcher": ["-m", "accelerate.commands.launch", "--cpu"], "sizes": (5, 3)},
    "two processes": {"ranks": 2, "sizes": (3, 2)},  # as torchrun starts them
}


HELD = {"anchors": False, "hold_data": True}  # a micro-batch has other anchors than a whole step


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_accelerate_loop_equals_a_plain_loop(folder, plain, name):
    logged = run(folder, name, **LAUNCHED[name], **HELD)
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    for entry, (loss, parts) in zip(logged, plain, strict=True):
        assert entry["loss"] == pytest.approx(loss, abs=1e-5)
        total = entry["pact/divergence"] * parts["positions"]
        assert total == pytest.approx(parts["divergence"], rel=1e-3, abs=1e-6)
        assert entry["pact/eased"] * parts["eased_positions"] == pytest.approx(parts["eased"], rel=1e-3)
        assert 0 < parts["eased"] < parts["eased_positions"]
    assert logged[-1]["pact/divergence"] > 1e-3
    assert "constrained: 3 steps" in verify_run(folder / name)
    receipt = Receipt.read(folder / name)
    assert receipt.positions == EPOCHS * plain[0][1]["positions"]
    assert receipt.reference == "table"
    saved = AutoModelForCausalLM.from_pretrained(folder / name)
    assert not torch.equal(saved.lm_head.weight, tiny_model().lm_head.weight)


def test_the_accelerate_loop_as_it_is_called_in_its_description(folder):
    logged = run(folder, "default", (4, 2))
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4, 5, 6]
    assert logged[0]["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    assert logged[-1]["pact/anchor_divergence"] > 1e-5
    assert "easing and anchors" in verify_run(folder / "default")


@pytest.mark.parametrize(
    ("changes", "reference"), [({"easing": False}, "start"), ({"advanced": {"chunk_size": 64}}, "table")]
)
def test_the_accelerate_loop_with_settings_of_ones_own(folder, changes, reference):
    name = f"own {reference}"
    run(folder, name, (4, 2), **changes)
    assert Receipt.read(folder / name).reference == reference
