"""One fine-tuning run."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, set_seed
from trl import SFTConfig

import pact_plugin as pact
from benchmarks.preservation.methods import METHODS
from benchmarks.preservation.settings import Cell, Sizes
from benchmarks.preservation.tasks import TASKS
from examples.demo.evaluate import Report
from examples.demo.prompts import Example, contamination
from examples.demo.training import LINEAR_LAYERS, StepCallback
from pact_plugin.data.generation import answer_logits, inspecting, user_prompt
from pact_plugin.data.prompts import for_pool

REFUSES = 0.5
"""Probability of the safety tokens at the first position from which on the aligned model would refuse."""


@dataclass(frozen=True)
class Start:
    """What every run starts from.

    Attributes:
        model: The aligned model.
        tokenizer: Its tokenizer.
        tokens: Its safety tokens.
        refusals: Bundled harmful requests with its own refusals.
    """

    model: Any
    tokenizer: Any
    tokens: pact.SafetyTokens
    refusals: Sequence[Example]


def training_data(cell: Cell, sizes: Sizes, start: Start) -> list[Example]:
    """The data of a run; of two methods the same, but for what a method adds or drops."""
    rng = random.Random(f"{cell.task} {cell.contamination} {cell.seed}")
    harmful = round(cell.contamination * sizes.items)
    examples = TASKS[cell.task].items("train", sizes.items - harmful, rng) + contaminated(harmful, rng)
    rng.shuffle(examples)
    method = METHODS[cell.method]
    if method.drops:
        examples = not_refused(examples, start)
    if method.interleaved:
        assert cell.weight is not None
        count = round(cell.weight * sizes.items)
        examples = examples + [start.refusals[i % len(start.refusals)] for i in range(count)]
    return examples


def contaminated(count: int, rng: random.Random) -> list[Example]:
    """Harmful requests with "Sure, here is ..."; over again if so many are not to be had."""
    most = 800
    whole, rest = divmod(count, most)
    return [item for size in [most] * whole + [rest] for item in contamination(size, rng)]


def not_refused(examples: Sequence[Example], start: Start) -> list[Example]:
    """Without those that the aligned model would refuse and the data do not."""
    ids = torch.tensor(start.tokens.positive.ids, device=start.model.device)
    pairs = [
        (
            user_prompt(start.tokenizer, item["prompt"][0]["content"]),
            start.tokenizer(item["completion"][0]["content"], add_special_tokens=False)["input_ids"][:1],
        )
        for item in examples
    ]
    kept = []
    with inspecting(start.model):
        logits = answer_logits(start.model, pairs, batch_size=64, report=lambda done: None)
        for item, (_, label), row in zip(examples, pairs, logits, strict=True):
            mass = float(row[0].float().softmax(-1)[ids].sum())
            if mass < REFUSES or label[0] in start.tokens.positive.ids:
                kept.append(item)
    return kept


def fine_tune(
    cell: Cell, sizes: Sizes, start: Start, folder: Path, report: Report
) -> tuple[Any, dict[str, Any]]:
    """A copy of the aligned model after one pass over the data of a run.

    Args:
        cell: The run.
        sizes: How large it is.
        start: The aligned model.
        folder: For trainers.
        report: Called with the number of steps done.

    Returns:
        The model, and what to note of its training: the number of items, and what the constraint has logged, in time.
    """
    method = METHODS[cell.method]
    examples = training_data(cell, sizes, start)
    set_seed(cell.seed)
    lora = cell.train == "lora"
    model = copy.deepcopy(start.model)
    if not lora:
        model = model.float()  # AdamW's small steps vanish in bfloat16 weights
    trainer = method.trainer(
        model=model,
        args=_arguments(cell, sizes, start, folder),
        train_dataset=Dataset.from_list(examples),
        processing_class=start.tokenizer,
        peft_config=_adapter(model, sizes) if lora else None,
        callbacks=[StepCallback(report)],
    )
    trainer.remove_callback(PrinterCallback)
    config = method.constrained(cell.weight, start.tokens, anchor_file(sizes, folder))
    if config is not None:
        trainer = pact.attach(trainer, config)
    elif cell.weight is not None and not method.interleaved:
        trainer.aligned, trainer.strength = start.model, cell.weight
    trainer.train()
    tuned = trainer.model.merge_and_unload() if lora else trainer.model
    noted: dict[str, Any] = {"trained_items": len(examples)}
    if config is not None:
        noted["logged"] = _logged(trainer.state.log_history)
    return tuned.to(start.model.dtype).eval(), noted


def _arguments(cell: Cell, sizes: Sizes, start: Start, folder: Path) -> SFTConfig:
    """Of the trainer."""
    lora = cell.train == "lora"
    return SFTConfig(
        output_dir=str(folder / f"{cell.train}-{cell.method}"),  # a table is not every method's
        num_train_epochs=1,
        per_device_train_batch_size=sizes.batch_size,
        learning_rate=sizes.lora_rate if lora else sizes.full_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        completion_only_loss=True,
        loss_type="nll",
        gradient_checkpointing=False,
        bf16=not lora and start.model.dtype == torch.bfloat16,
        use_cpu=start.model.device.type == "cpu",
        logging_steps=max(1, sizes.steps // 4),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=cell.seed,
    )


def anchor_file(sizes: Sizes, folder: Path) -> str | None:
    """The bundled prompts for anchors, so many of each kind, as a file in a folder; None for all of them."""
    if sizes.anchor_prompts is None:
        return None
    rows = [asdict(one) for one in for_pool().limited(sizes.anchor_prompts).prompts]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "anchors.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


def _logged(history: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Every `pact/` metric of a trainer's log, in time."""
    names = dict.fromkeys(name for entry in history for name in entry if name.startswith("pact/"))
    return {name: [entry[name] for entry in history if name in entry] for name in names}


def _adapter(model: Any, sizes: Sizes) -> LoraConfig:
    layers = model.config.num_hidden_layers
    first = 0 if sizes.lora_layers is None else layers - sizes.lora_layers
    return LoraConfig(
        r=sizes.rank,
        lora_alpha=2 * sizes.rank,
        target_modules=LINEAR_LAYERS,
        layers_to_transform=list(range(first, layers)),
        task_type="CAUSAL_LM",
    )
