"""Fine-tune a chat model under PACT in your own training loop, on one or more processes, with Accelerate.

    accelerate launch accelerate_loop.py --model my-org/my-aligned-model --data chat.jsonl --output out
    pact-plugin verify out

Every line of the data is `{"messages": [...]}` and ends with the assistant's turn, which is what is trained on. Tested
on one process and under DDP; Accelerate shards no weights without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

import pact_plugin as pact


def examples(data: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Token ids and labels of each conversation; all but its last turn is masked."""
    rows = []
    for line in data.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        if whole[: len(prompt)] != prompt:
            raise SystemExit(
                f"{data}: the model's chat template opens an answer otherwise than it writes one, so where it begins "
                "is not known. Build the labels from the answer's own tokens."
            )
        rows.append({"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]})
    return rows


def grouped(loader: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The micro-batches of one optimiser step after another; the last of an epoch may have fewer."""
    batches = iter(loader)
    while group := list(islice(batches, size)):
        yield group


def main() -> None:
    """Train, and save the model with its receipt."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the aligned model: a folder or hub id")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--pact", type=json.loads, default=True, help="true, or settings as JSON")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4, help="rows per forward pass and process")
    parser.add_argument("--accumulation", type=int, default=4, help="forward passes per optimiser step")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    args = parser.parse_args()
    settings = {} if args.pact is True else args.pact
    asks = pact.PactConfig.of(settings).asks_at_responses  # anchors alone ask nothing of the data

    set_seed(0)
    accelerator = Accelerator()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    collator = DataCollatorForSeq2Seq(tokenizer)
    loader = DataLoader(examples(args.data, tokenizer), args.batch_size, shuffle=True, collate_fn=collator)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    # After `prepare`, which moves the model to its device; before the first step, while it is the aligned model.
    if asks:
        advanced = {"store": args.output / "_pact_store"} | settings.get("advanced", {})
        settings = settings | {"advanced": advanced}
    with accelerator.autocast():  # the aligned model is asked in the precision that training runs in
        constraint = pact.PactConstraint(model, tokenizer, settings)
        if constraint.reference.can_fill:  # what the aligned model predicts, so that no step runs it
            constraint.fill(loader)

    model.train()
    ranks, number = accelerator.num_processes, 0
    for _ in range(args.epochs):
        for batches in grouped(loader, args.accumulation):
            number += 1
            # Task and constraint have one denominator: the trained tokens of the whole step, over all processes.
            tokens = accelerator.reduce(sum((batch["labels"][:, 1:] != -100).sum() for batch in batches))
            step = pact.Step(number, micro_batches=len(batches), tokens=tokens, world_size=ranks)
            total = torch.zeros((), device=accelerator.device)
            for batch in batches:
                # Not `accelerator.accumulate`: it divides by the number of micro-batches, which `tokens` has done.
                last = batch is batches[-1]
                with nullcontext() if last else accelerator.no_sync(model):
                    with constraint.watch(batch):
                        output = model(**batch, num_items_in_batch=tokens)
                    with accelerator.autocast():  # as the aligned model was asked
                        added = constraint.loss(batch, step)
                    # `ranks` undoes the averaging of gradients over the processes.
                    loss = output.loss * ranks + added
                    accelerator.backward(loss)
                total += loss.detach()
            optimizer.step()
            optimizer.zero_grad()
            metrics = constraint.metrics("train", accelerator.reduce)
            mean = accelerator.reduce(total, "mean").item()
            accelerator.print(json.dumps({"step": number, "loss": mean, **metrics}))

    constraint.record.flush("train", accelerator.reduce)
    weights = accelerator.get_state_dict(model)  # of every rank, where they are sharded
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output, state_dict=weights)
        tokenizer.save_pretrained(args.output)
        constraint.record.write(args.output, total_steps=number)
    accelerator.wait_for_everyone()
    if accelerator.device.type == "cpu":
        time.sleep(1)  # Gloo's threads free their last tensors; as Python ends it may abort (pytorch#179291)
    accelerator.end_training()


if __name__ == "__main__":
    main()
