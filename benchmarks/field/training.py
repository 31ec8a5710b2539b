"""Fine-tuning a copy of the aligned model: LoRA or every weight, AdamW, cosine, in a plain loop."""

from __future__ import annotations

import copy
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.field.data import Item
from benchmarks.field.encoding import Row, batch_of, encode
from benchmarks.field.methods.base import Method, Objective, Trainee, before_answers
from benchmarks.field.methods.treatment import LEFT_OUT, treated
from benchmarks.field.settings import Cell, Sizes
from benchmarks.field.start import Start
from pact_plugin.model.head import language_head

WARM_UP = 5
"""Steps in which the learning rate rises."""
RANK, ALPHA = 16, 32
CLIP = 1.0
"""Norm of the gradient, at most."""
Report = Callable[[int, int], None]
"""Called with the steps done, and all."""


def fine_tune(
    start: Start, cell: Cell, method: Method, items: Sequence[Item], folder: Path, report: Report
) -> dict[str, Any]:
    """Train one adapter, or every weight, and save it.

    Args:
        start: The aligned model.
        cell: The run.
        method: That of the cell.
        items: In the order of the first epoch.
        folder: For what was trained.
        report: Of progress.

    Returns:
        What to note of the training, as plain JSON values.
    """
    begun = time.perf_counter()
    model = trainable(start, cell.seed)
    trainee = Trainee(model, language_head(model), start, cell.seed)
    eased = treated(items, method.treatment, trainee)
    rows = [
        LEFT_OUT if e is LEFT_OUT else encode(start.tokenizer, item, e)
        for item, e in zip(items, eased, strict=True)
    ]
    strength = 1.0 if cell.strength is None else cell.strength
    objective = method.make(trainee, strength)
    prepared = time.perf_counter()
    rate = start.sizes.learning_rate * (strength if method.scales_rate else 1.0)
    losses, tokens = loop(trainee, objective, rows, rate, report)
    trainee.model.save_pretrained(str(folder))
    return {
        "treated": {
            kind: [
                sum(e != 0 for e, item in zip(eased, items, strict=True) if item.harmful == harmful),
                count,
            ]
            for kind, harmful in (("harmful", True), ("benign", False))
            if (count := sum(item.harmful == harmful for item in items))
        },
        "seconds": {
            "prepare": round(prepared - begun, 1),
            "kept": round(trainee.kept_seconds, 1),
            "train": round(time.perf_counter() - prepared, 1),
        },
        "tokens": tokens,
        "losses": [round(loss, 4) for loss in losses],
        **objective.notes(),
    }


def trainable(start: Start, seed: int) -> Any:
    """A copy of the aligned model: with a new adapter, or every weight in training."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    if start.sizes.train == "full":
        return copy.deepcopy(start.model).float().requires_grad_()  # small steps vanish in bfloat16
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    frozen = {id(one): one for one in start.model.parameters()}  # shared: 2 GB less for 0.5B in float32
    return get_peft_model(copy.deepcopy(start.model, frozen), lora)


def loop(
    trainee: Trainee, objective: Objective, rows: Sequence[Row | None], rate: float, report: Report
) -> tuple[list[float], dict[str, int]]:
    """Every step of a run.

    Returns:
        The task's cross-entropy in each step, not eased; and the tokens read with and without gradient.
    """
    sizes, head = trainee.start.sizes, trainee.head
    parameters = [one for one in trainee.model.parameters() if one.requires_grad]
    device, half = trainee.start.model.device.type, sizes.dtype == "bfloat16"
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    batches, losses = list(batched(rows, sizes, trainee.seed)), []
    with counted(head.decoder) as tokens:
        trainee.model.train()
        for number, chosen in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(number, len(batches))
            batch, weights = batch_of(chosen)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                with objective.watch():
                    hidden = head.decoder(
                        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                    ).last_hidden_state
                nll = task_nll(head.logits(hidden[before_answers(batch["labels"])]), batch["labels"])
                penalty = objective.penalty(batch, number)
            objective.backward((nll * weights).sum() / len(nll), penalty, parameters)
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(nll.detach().mean()))
            report(number + 1, len(batches))
    return losses, dict(tokens)


@contextmanager
def counted(decoder: nn.Module) -> Iterator[Counter[str]]:
    """Count the tokens that a decoder reads, padding included: `trained` with gradient, and `read` without."""
    tokens: Counter[str] = Counter(trained=0, read=0)

    def count(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        tokens["trained" if torch.is_grad_enabled() else "read"] += 0 if given is None else given.numel()

    handle = decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield tokens
    finally:
        handle.remove()


def task_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of each label but those of -100, row by row, in nats."""
    return F.cross_entropy(logits, labels[labels != -100], reduction="none")


def batched(rows: Sequence[Row | None], sizes: Sizes, seed: int) -> Iterator[list[Row]]:
    """The batches of all epochs, each in an order of its own; a last one that is not full is left out.

    Every method has the same: an item that is left out (None) is missing in its batch, and nothing else changes.
    """
    rng = random.Random(seed)
    size = min(sizes.batch_size, len(rows))
    for _ in range(sizes.epochs):
        order = list(range(len(rows)))
        rng.shuffle(order)
        for begin in range(0, len(rows) - size + 1, size):
            chosen = [row for i in order[begin : begin + size] if (row := rows[i]) is not None]
            if chosen:
                yield chosen


def schedule(number: int, steps: int) -> float:
    """Factor of the learning rate in step `number` from 0: a linear rise, and half a cosine down."""
    return min(1.0, (number + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * number / steps))
