"""Make the adapter that the demo ships: ``python -m examples.demo.align --output DIR``.

It teaches the model to refuse harmful requests, and to go on answering benign ones as it did: their
answers are the model's own, written down before training. Some one-word labelling keeps it at ease with
questions such as the demo's task.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import set_seed

from examples.demo.evaluate import answer
from examples.demo.models import load_base
from examples.demo.prompts import REFUSALS, Example, example, labelling, sample_prompts
from examples.demo.smollm2 import HUB_ID
from examples.demo.training import Recipe, make_trainer
from pact_plugin.cli.console import progress_bars
from pact_plugin.data.generation import Done, Progress, reporting
from pact_plugin.data.prompts import bundled
from pact_plugin.judge import is_refusal

PROMPTS_PER_LINE = 2
LABELS_PER_LINE = 2
BENIGN_TOKENS = 32
CARD = """# The adapter that aligns the demo's model

A LoRA adapter for [{base}](https://huggingface.co/{base}) (Apache-2.0), under the same licence. With it the
model refuses harmful requests. It exists for `pact-plugin demo` and is no safety measure for anything else.

    python -m examples.demo.align {arguments}

made it, from the prompts in `examples/demo/data` (`*_alignment.txt`, `labels.txt`) and `pact_plugin/data`: harmful
requests with one of six refusals, benign ones with the first sentence of the model's own answer.
"""


def refused(prompts: list[str], rng: random.Random) -> list[Example]:
    """Each prompt with one of the refusals."""
    return [example(prompt, rng.choice(REFUSALS)) for prompt in prompts]


def own_answers(model: Any, tokenizer: Any, prompts: list[str], report: Done) -> list[Example]:
    """Benign requests with the first sentence of the model's own answers, without those it refused."""
    texts = answer(model, tokenizer, prompts, BENIGN_TOKENS, report)
    pairs = [(prompt, first_sentence(text)) for prompt, text in zip(prompts, texts, strict=True)]
    return [example(prompt, text) for prompt, text in pairs if text and not is_refusal(text)]


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence; empty if it does not end."""
    found = re.match(r".*?[a-z)\"'][.!?](?=\s|$)", text, re.DOTALL)
    return found[0] if found else ""


def main() -> None:
    """Train the adapter and save it in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--device", help="such as cpu; by default an accelerator")
    parser.add_argument("--dtype", default="bfloat16", help="of the frozen weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()

    console = Console(highlight=False)
    model, tokenizer, source = load_base(arguments.device, arguments.dtype)
    console.print(f"Base model: {source}")
    with progress_bars(console) as bars:
        recipe = Recipe(
            arguments.learning_rate,
            arguments.rank,
            epochs=arguments.epochs,
            seed=arguments.seed,
            sampling="group_by_length",
        )
        tuned = align(model, tokenizer, arguments.output, bars, recipe)
    save_adapter(tuned, arguments.output)
    console.print(f"the adapter is in {arguments.output}")


def align(model: Any, tokenizer: Any, output: Path, bars: Progress, recipe: Recipe) -> Any:
    """Teach a model to refuse by a new LoRA adapter.

    Args:
        model: A chat model without adapters.
        tokenizer: Its tokenizer.
        output: A folder for the trainer.
        bars: Called with (done, total, description).
        recipe: Of the training; its seed draws the examples, too.

    Returns:
        The PEFT model.
    """
    set_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    questions = [*sample_prompts("benign_alignment", PROMPTS_PER_LINE, rng), *bundled().texts("benign")]
    benign = own_answers(model, tokenizer, questions, reporting(bars, len(questions), "Own answers"))
    harmful = [*sample_prompts("harmful_alignment", PROMPTS_PER_LINE, rng), *bundled().texts("harmful")]
    examples = refused(harmful, rng) + benign + labelling(LABELS_PER_LINE, rng)
    return trained(model, tokenizer, examples, output, bars, recipe)


def trained(
    model: Any, tokenizer: Any, examples: list[Example], output: Path, bars: Progress, recipe: Recipe
) -> Any:
    """The PEFT model after training on examples; the arguments are those of `align`."""
    report = reporting(bars, recipe.steps(len(examples)), "Aligning")
    trainer = make_trainer(model, tokenizer, examples, output, report, recipe)
    trainer.train()
    return trainer.model


def save_adapter(model: Any, folder: Path) -> None:
    """Save a PEFT model's adapter in bfloat16, with a card that says where it comes from."""
    model.peft_config["default"].base_model_name_or_path = HUB_ID
    save_in_bfloat16(model, folder)
    arguments = " ".join("DIR" if Path(word) == folder else word for word in sys.argv[1:])
    (folder / "README.md").write_text(CARD.format(arguments=arguments, base=HUB_ID), encoding="utf-8")


def save_in_bfloat16(model: Any, folder: Path) -> None:
    """Save a PEFT model's adapter, its tensors in bfloat16."""
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)


if __name__ == "__main__":
    main()
