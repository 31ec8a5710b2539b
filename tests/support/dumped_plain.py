"""What a command that trains should have logged: the formulas of `plain` on the batches and weights of its own run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import Bench, Run
from loop import probe_of
from peft import LoraConfig, get_peft_model
from plain import Eased, anchor_divergence, micro_batch_loss, refusal_shifts
from torch import Tensor
from transformers import AutoModelForCausalLM

import pact_plugin as pact


@dataclass(frozen=True)
class Place:
    """Whose batches they are.

    Args:
        accumulation: Micro-batches of a step on each rank.
        rank: Process.
        ranks: How many there are.
    """

    accumulation: int = 1
    rank: int = 0
    ranks: int = 1

    def anchors(self, pool: Any, number: int) -> list[int]:
        """The numbers of a micro-batch of this rank's: as if all ranks' micro-batches were one process's."""
        step, micro_batch = divmod(number, self.accumulation)
        place, count = self.rank * self.accumulation + micro_batch, self.ranks * self.accumulation
        return pool.schedule.chosen(step + 1, place, 0, count)


def expected(
    workshop: Bench,
    run: Run,
    place: Place,
    *,
    tokens: pact.SafetyTokens | None = None,
    load: Callable[[Path], Any] = AutoModelForCausalLM.from_pretrained,
    whole_step: bool = False,
) -> tuple[list[float], list[dict[str, float]]]:
    """The loss of every step, and the sums of every micro-batch, of what the model was given in a run.

    Axolotl 0.19's cross-entropy is a mean over each micro-batch, and their mean over a step. Later ones name the
    denominator to the model: the rank's tokens of the whole step. That of ms-swift and LLaMA-Factory is a mean over the
    tokens of the whole step.

    Args:
        workshop: Where the run was.
        run: With dumped batches, under the settings that its receipt names.
        place: Whose batches.
        tokens: The safety tokens; the workshop's when absent.
        load: Gives the aligned model from its folder.
        whole_step: Whether the cross-entropy is a mean over the tokens of a step, though the model is not told.
    """
    folder = workshop.folder / "model"
    aligned, model = load(folder).eval(), load(folder).eval()
    if (run.checkpoints[-1] / "adapter_config.json").exists():
        model = get_peft_model(model, LoraConfig.from_pretrained(run.checkpoints[-1])).eval()
    settings, tokens = run.receipt["config"], tokens or workshop.tokens
    safety = torch.tensor(tokens.positive.ids)
    pool, easing = None, None
    if settings["anchors"] or settings["easing"]:
        asked = {name: settings[name] for name in ("anchors", "easing")}
        config = pact.PactConfig(safety_tokens=tokens, **asked)
        constraint = pact.PactConstraint(load(folder), workshop.tokenizer, config)
        pool = next((term for term in constraint.terms if term.name == "anchors"), None)
        if settings["easing"]:
            probe = probe_of(constraint)
            easing = Eased(probe.weights, probe.bias, workshop.tokenizer, _first(settings["easing"]))
    losses, parts = [], []
    size, batches = place.accumulation, run.dumped(place.rank) if place.ranks > 1 else run.dumped()
    for number, dumped in enumerate(batches):
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in dumped["weights"].items():
                parameters[name].copy_(weight)
            loss, part = _of_data(model, aligned, dumped["inputs"], safety, easing, run)
            if pool is not None:
                chosen = place.anchors(pool, number)
                divergence = anchor_divergence(model, aligned, pool, chosen, safety)
                loss = loss + settings["weight"] * divergence
                part["anchor_divergence"] = divergence.item() * part["tokens"]
                shifts = refusal_shifts(model, aligned, pool, chosen, safety)
                part |= {"refusal_shift": sum(shifts), "harmful": len(shifts)}
        share = 1 / size
        named = dumped["inputs"].get("num_items_in_batch")
        if whole_step or named is not None:
            first = number - number % size
            labels = [one["inputs"]["labels"][:, 1:] for one in batches[first : first + size]]
            total = sum(int((own != -100).sum()) for own in labels)
            assert named is None or int(named) == total
            share = part["tokens"] / total
        losses.append(loss.item() * share)
        parts.append(part)
    assert losses
    assert len(losses) % size == 0
    return [sum(losses[i : i + size]) for i in range(0, len(losses), size)], parts


def assert_equal_to_plain(workshop: Bench, run: Run, accumulation: int = 1, **how: Any) -> None:
    """Losses, metrics and receipt of a run of one process are the plain ones, and nothing else is logged."""
    losses, parts = expected(workshop, run, Place(accumulation), **how)
    assert [entry["loss"] for entry in run.steps] == pytest.approx(losses, abs=1e-4)
    for step, entry in enumerate(run.steps):
        assert_metrics(entry, parts[step * accumulation : (step + 1) * accumulation], run)
    moved = "pact/anchor_divergence" if run.receipt["config"]["anchors"] else "pact/divergence"
    assert run.steps[0][moved] == pytest.approx(0, abs=1e-6)
    assert run.steps[-1][moved] > 1e-5
    assert run.receipt["trained_tokens"] == sum(part["tokens"] for part in parts)
    looked = sum(max(part["positions"], part["eased_positions"]) for part in parts)
    assert run.receipt["positions"] == looked
    if run.receipt["config"]["easing"]:
        eased = sum(part["eased"] for part in parts)
        assert 0 < eased < sum(part["eased_positions"] for part in parts)
    assert run.receipt["steps"] == [[1, len(run.steps)]]


def assert_metrics(entry: dict[str, float], parts: list[dict[str, float]], run: Run) -> None:
    """The `pact/*` metrics of a step are those of its micro-batches, on whatever ranks."""
    settings = run.receipt["config"]
    total = {name: sum(part.get(name, 0.0) for part in parts) for name in set().union(*parts)}
    metrics: dict[str, float] = {}
    if settings["easing"]:
        metrics["pact/eased"] = total["eased"] / total["eased_positions"]
    if settings["hold_data"]:
        metrics["pact/divergence"] = total["divergence"] / total["positions"]
    if settings["anchors"]:
        metrics["pact/anchor_divergence"] = total["anchor_divergence"] / total["tokens"]
        if total["harmful"]:
            metrics["pact/refusal_shift"] = total["refusal_shift"] / total["harmful"]
    if settings["anchors"] or settings["hold_data"]:
        penalty = total["divergence"] + total.get("anchor_divergence", 0.0)
        metrics["pact/loss"] = settings["weight"] * penalty / total["tokens"]
    logged = {name: value for name, value in entry.items() if name.startswith("pact/")}
    assert logged == pytest.approx(metrics, rel=1e-3, abs=1e-6)


def _of_data(
    model: Any, aligned: Any, batch: dict[str, Tensor], safety: Tensor, easing: Eased | None, run: Run
) -> tuple[Tensor, dict[str, float]]:
    settings = run.receipt["config"]
    return micro_batch_loss(
        model,
        aligned,
        batch,
        safety,
        weight=settings["weight"],
        easing=easing,
        hold_data=bool(settings["hold_data"]),
        hold_first=_first(settings["hold_data"]),
        stored=run.receipt["table"] is not None,
    )


def _first(block: Any) -> int | None:
    return None if not block or block["first"] == "all" else block["first"]
