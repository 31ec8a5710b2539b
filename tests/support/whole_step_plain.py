"""What a run should have logged whose cross-entropy is a mean over the tokens of a whole step, as ms-swift's.

By the formulas of `plain`, on the batches and weights of the run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop import probe_of
from peft import LoraConfig, get_peft_model
from plain import Eased, anchor_divergence, micro_batch_loss
from transformers import AutoModelForCausalLM

import pact_plugin as pact


def expected(
    workshop: Any, run: Any, accumulation: int, tokens: pact.SafetyTokens
) -> tuple[list[float], list[list[dict[str, float]]]]:
    """The loss of every step, and the sums of its micro-batches.

    Args:
        workshop: Where the run was: its `folder`, `tokenizer` and `tokens`.
        run: With dumped batches, under the settings that its receipt names.
        accumulation: Micro-batches of a step.
        tokens: The safety tokens.
    """
    load = lambda: AutoModelForCausalLM.from_pretrained(workshop.folder / "model").eval()  # noqa: E731
    aligned, model = load(), load()
    if (run.checkpoints[-1] / "adapter_config.json").exists():
        model = get_peft_model(model, LoraConfig.from_pretrained(run.checkpoints[-1])).eval()
    settings, safety = run.receipt["config"], torch.tensor(tokens.positive.ids)
    asked = {name: settings[name] for name in ("anchors", "easing")}
    constraint = pact.PactConstraint(
        load(), workshop.tokenizer, pact.PactConfig(safety_tokens=tokens, hold_data=True, **asked)
    )
    pool = next((term for term in constraint.terms if term.name == "anchors"), None)
    easing = None
    if settings["easing"]:
        probe = probe_of(constraint)
        easing = Eased(probe.weights, probe.bias, workshop.tokenizer, settings["easing"]["first"])
    dumped = run.dumped()
    assert dumped
    steps = [dumped[start : start + accumulation] for start in range(0, len(dumped), accumulation)]
    losses, parts = [], []
    for number, step in enumerate(steps, 1):
        counts = [int((one["inputs"]["labels"][:, 1:] != -100).sum()) for one in step]
        total, found = 0.0, []
        for micro_batch, (one, count) in enumerate(zip(step, counts, strict=True)):
            part = _micro_batch(model, aligned, one, safety, settings, easing, sum(counts), run)
            if pool is not None:
                chosen = pool.chosen(number, micro_batch, 0, accumulation)
                divergence = anchor_divergence(model, aligned, pool, chosen, safety)
                part["loss"] += settings["weight"] * divergence.item() * count / sum(counts)
                part["anchor_divergence"] = divergence.item() * count
            total += part.pop("loss")
            found.append(part)
        losses.append(total)
        parts.append(found)
    return losses, parts


@torch.no_grad()
def _micro_batch(
    model: Any,
    aligned: Any,
    dumped: dict[str, Any],
    safety: torch.Tensor,
    settings: dict[str, Any],
    easing: Eased | None,
    count: int,
    run: Any,
) -> dict[str, float]:
    parameters = dict(model.named_parameters())
    for name, weight in dumped["weights"].items():
        parameters[name].copy_(weight)
    loss, part = micro_batch_loss(
        model,
        aligned,
        dumped["inputs"],
        safety,
        weight=settings["weight"],
        easing=easing,
        hold_data=bool(settings["hold_data"]),
        count=count,
        stored=run.receipt["table"] is not None,
    )
    return {**part, "loss": loss.item()}


def assert_equal_to_plain(
    workshop: Any, run: Any, accumulation: int = 2, tokens: pact.SafetyTokens | None = None
) -> None:
    """Losses, metrics and receipt of a run of one process are the plain ones."""
    losses, steps = expected(workshop, run, accumulation, tokens or workshop.tokens)
    assert [entry["loss"] for entry in run.steps] == pytest.approx(losses, abs=1e-4)
    settings, receipt = run.receipt["config"], run.receipt
    sums = [{name: sum(part.get(name, 0.0) for part in parts) for name in parts[0]} for parts in steps]
    for entry, total in zip(run.steps, sums, strict=True):
        if settings["easing"]:
            assert entry["pact/eased"] == pytest.approx(total["eased"] / total["eased_positions"], abs=1e-6)
        if settings["anchors"]:
            found = total["anchor_divergence"] / total["tokens"]
            assert entry["pact/anchor_divergence"] == pytest.approx(found, rel=1e-3, abs=1e-6)
        if settings["hold_data"]:
            found = total["divergence"] / total["positions"]
            assert entry["pact/divergence"] == pytest.approx(found, rel=1e-3, abs=1e-6)
    if settings["easing"]:
        assert 0 < sum(total["eased"] for total in sums) < sum(total["eased_positions"] for total in sums)
    moved = "pact/anchor_divergence" if settings["anchors"] else "pact/divergence"
    assert run.steps[0][moved] == pytest.approx(0, abs=1e-6)
    assert run.steps[-1][moved] > 1e-5
    assert receipt["trained_tokens"] == sum(total["tokens"] for total in sums)
    assert receipt["steps"] == [[1, len(run.steps)]]
