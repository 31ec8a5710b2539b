"""Make the adapter that the demo ships: ``python -m pact_demo.align --output DIR``.

It teaches the model to refuse harmful requests, and to go on answering harmless ones as it did: their
answers are the model's own, written down before training. Some one-word labelling keeps it at ease with
questions such as the demo's task.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import set_seed

from pact_demo.evaluate import Report, answer, reporter
from pact_demo.models import load_base
from pact_demo.prompts import REFUSALS, Example, example, labelling, sample_prompts
from pact_demo.training import make_trainer
from pact_plugin.cli.tokens_view import progress_bars
from pact_plugin.judge import is_refusal

PROMPTS_PER_LINE = 3
LABELS_PER_LINE = 3
BENIGN_TOKENS = 40
BATCH_SIZE = 16


def refusals(rng: random.Random) -> list[Example]:
    """Harmful requests, each with one of the refusals."""
    return [
        example(p, rng.choice(REFUSALS)) for p in sample_prompts("harmful_alignment", PROMPTS_PER_LINE, rng)
    ]


def own_answers(model: Any, tokenizer: Any, prompts: list[str], report: Report) -> list[Example]:
    """Harmless requests with the first sentences of the model's own answers, without those it refused."""
    texts = answer(model, tokenizer, prompts, BENIGN_TOKENS, report)
    pairs = [(prompt, whole_sentences(text)) for prompt, text in zip(prompts, texts, strict=True)]
    return [example(prompt, text) for prompt, text in pairs if text and not is_refusal(text)]


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if there is none."""
    ends = [match.end() for match in re.finditer(r"[a-z)\"'][.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""


def main() -> None:
    """Train the adapter and save it in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--device", help="such as cpu; by default an accelerator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()

    set_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    console = Console(highlight=False)
    model, tokenizer, source = load_base(arguments.device)
    console.print(f"Base model: {source}")
    questions = sample_prompts("benign_alignment", PROMPTS_PER_LINE, rng)
    with progress_bars(console) as bars:
        benign = own_answers(model, tokenizer, questions, reporter(bars, len(questions), "Own answers"))
        examples = refusals(rng) + benign + labelling(LABELS_PER_LINE, rng)
        steps = arguments.epochs * -(-len(examples) // BATCH_SIZE)
        trainer = make_trainer(
            model,
            tokenizer,
            examples,
            arguments.output,
            reporter(bars, steps, "Aligning"),
            epochs=arguments.epochs,
            batch_size=BATCH_SIZE,
            learning_rate=arguments.learning_rate,
            rank=arguments.rank,
            seed=arguments.seed,
        )
        trainer.train()
    trainer.model.save_pretrained(arguments.output)
    weights = arguments.output / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    console.print(f"{len(examples)} examples, {weights.stat().st_size / 1e6:.1f} MB in {weights}")


if __name__ == "__main__":
    main()
