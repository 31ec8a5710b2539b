"""Make the adapter that the demo ships: ``python -m pact_demo.align --output DIR``; with ``--full`` a whole model.

It teaches the model to refuse harmful requests, and to go on answering harmless ones as it did: their
answers are the model's own, written down before training. Some one-word labelling keeps it at ease with
questions such as the demo's task.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pact_transformers.loading import SMOLLM2_HUB_ID
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import set_seed

from pact_demo.evaluate import Report, answer, reporter
from pact_demo.models import load_base
from pact_demo.prompts import REFUSALS, Example, example, labelling, read_lines, sample_prompts
from pact_demo.recipes import ADAPTER, FULL
from pact_demo.training import make_trainer
from pact_plugin.cli.tokens_view import progress_bars
from pact_plugin.generate import Progress
from pact_plugin.judge import is_refusal
from pact_plugin.prompts import benign_prompts, harmful_prompts

PROMPTS_PER_LINE = 2
LABELS_PER_LINE = 2
BENIGN_TOKENS = 32
CARD = """# The adapter that aligns the demo's model

A LoRA adapter for [{base}](https://huggingface.co/{base}) (Apache-2.0), under the same licence. With it the
model refuses harmful requests. It exists for `pact-plugin demo` and is no safety measure for anything else.

    python -m pact_demo.align {arguments}

made it, from the prompts in `pact_demo/data` (`*_alignment.txt`, `labels.txt`) and `pact_plugin/data`: harmful requests
with one of six refusals, harmless ones with the first sentence of the model's own answer.
"""


def refusals(prompts: Sequence[str], rng: random.Random) -> list[Example]:
    """Each prompt with one of the refusals."""
    return [example(prompt, rng.choice(REFUSALS)) for prompt in prompts]


def in_frames(prompts: Sequence[str], share: int, rng: random.Random) -> list[str]:
    """One of so many prompts, each in a role-play."""
    frames = read_lines("frames_alignment")
    return [rng.choice(frames).format(prompt) for prompt in rng.sample(prompts, len(prompts) // share)]


def examples(model: Any, tokenizer: Any, *, framed: bool, seed: int, bars: Progress) -> list[Example]:
    """What a model learns from: refusals, its own answers to harmless questions, and labels.

    Args:
        model: A chat model without adapters.
        tokenizer: Its tokenizer.
        framed: Whether half of the harmful prompts and a third of the harmless ones are there again in a role-play.
        seed: Of everything that is drawn.
        bars: Called with (done, total, description).
    """
    rng = random.Random(seed)

    def harmful() -> list[str]:
        return [*sample_prompts("harmful_alignment", PROMPTS_PER_LINE, rng), *harmful_prompts()]

    def benign() -> list[str]:
        return [*sample_prompts("benign_alignment", PROMPTS_PER_LINE, rng), *benign_prompts()]

    def answered(questions: list[str]) -> list[Example]:
        return own_answers(model, tokenizer, questions, reporter(bars, len(questions), "Own answers"))

    if not framed:  # drawn in this order, the shipped adapter can be made again
        helpful = answered(benign())
        return refusals(harmful(), rng) + helpful + labelling(LABELS_PER_LINE, rng)
    asked, questions = harmful(), benign()
    asked += in_frames(asked, 2, rng)
    questions += in_frames(questions, 3, rng)
    helpful = answered(questions)
    return refusals(asked, rng) + helpful + labelling(LABELS_PER_LINE, rng)


def own_answers(model: Any, tokenizer: Any, prompts: list[str], report: Report) -> list[Example]:
    """Harmless requests with the first sentence of the model's own answers, without those it refused."""
    texts = answer(model, tokenizer, prompts, BENIGN_TOKENS, report)
    pairs = [(prompt, first_sentence(text)) for prompt, text in zip(prompts, texts, strict=True)]
    return [example(prompt, text) for prompt, text in pairs if text and not is_refusal(text)]


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence; empty if it does not end."""
    found = re.match(r".*?[a-z)\"'][.!?](?=\s|$)", text, re.DOTALL)
    return found[0] if found else ""


def main() -> None:
    """Train the adapter, or with ``--full`` the model, and save it in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter or the model")
    parser.add_argument("--device", help="such as cpu; by default an accelerator")
    parser.add_argument(
        "--dtype", default="bfloat16", help="of the frozen weights; with --full, of the passes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--full", action="store_true", help="train all weights, with framed prompts by default"
    )
    parser.add_argument("--rank", type=int, help=f"of the adapter; by default {ADAPTER.rank}")
    parser.add_argument(
        "--framed", action=argparse.BooleanOptionalAction, help="ask a part again in a role-play"
    )
    for name in ("epochs", "batch_size", "learning_rate", "warmup_steps"):
        adapter, full = getattr(ADAPTER, name), getattr(FULL, name)
        flag, default = f"--{name.replace('_', '-')}", f"by default {adapter:g}, with --full {full:g}"
        parser.add_argument(flag, type=type(adapter), help=default)
    arguments = parser.parse_args()
    if arguments.full and arguments.rank is not None:
        parser.error("--rank: there is no adapter with --full; leave out one of the two")
    names = ("rank", "framed", "epochs", "batch_size", "learning_rate", "warmup_steps")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    recipe = replace(FULL if arguments.full else ADAPTER, **given)

    console = Console(highlight=False)
    model, tokenizer, source = load_base(arguments.device, arguments.dtype)
    console.print(f"Base model: {source}")
    with progress_bars(console) as bars:
        tuned = align(model, tokenizer, arguments.output, bars, seed=arguments.seed, **asdict(recipe))
    if arguments.full:
        tuned.bfloat16().save_pretrained(arguments.output)
        tokenizer.save_pretrained(arguments.output)
    else:
        save_adapter(tuned, arguments.output)
    console.print(f"the {'model' if arguments.full else 'adapter'} is in {arguments.output}")


def align(
    model: Any,
    tokenizer: Any,
    output: Path,
    bars: Progress,
    *,
    seed: int = 0,
    rank: int | None = 8,
    framed: bool = False,
    epochs: int = 4,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    warmup_steps: int = 5,
) -> Any:
    """Teach a model to refuse; by default as the shipped adapter was made.

    Args:
        model: A chat model without adapters. In full fine-tuning it is itself trained: its weights in float32, with
            products in bfloat16 if that is its dtype.
        tokenizer: Its tokenizer.
        output: A folder for the trainer.
        bars: Called with (done, total, description).
        seed: Of the examples, their order and the adapter.
        rank: Of a new LoRA adapter; None: full fine-tuning.
        framed: See `examples`.
        epochs: Passes over the examples.
        batch_size: Examples in one optimiser step.
        learning_rate: Of AdamW, at its highest.
        warmup_steps: In which it rises.

    Returns:
        The PEFT model, or the model in float32.
    """
    set_seed(seed)
    learnt = examples(model, tokenizer, framed=framed, seed=seed, bars=bars)
    steps = epochs * -(-len(learnt) // batch_size)
    full = rank is None
    autocast = full and model.dtype == torch.bfloat16
    trainer = make_trainer(
        model.float() if full else model,
        tokenizer,
        learnt,
        output,
        reporter(bars, steps, "Aligning"),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        rank=rank,
        seed=seed,
        sampling="group_by_length",  # less padding
        warmup_steps=warmup_steps,
        autocast=autocast,
    )
    trainer.train()
    # Without the autocast that the trainer wraps around a model.
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False) if full else trainer.model


def save_adapter(model: Any, folder: Path) -> None:
    """Save a PEFT model's adapter in bfloat16, with a card that says where it comes from."""
    model.peft_config["default"].base_model_name_or_path = SMOLLM2_HUB_ID
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    arguments = " ".join("DIR" if Path(word) == folder else word for word in sys.argv[1:])
    (folder / "README.md").write_text(CARD.format(arguments=arguments, base=SMOLLM2_HUB_ID), encoding="utf-8")


if __name__ == "__main__":
    main()
