"""Teach a model to refuse, however it is asked and in a role-play too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import typer
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from rich.console import Console
from transformers import set_seed

from benchmarks.taught import PACKAGE
from examples.demo.align import own_answers, refused, save_in_bfloat16, trained
from examples.demo.models import load_base, native_dtype
from examples.demo.prompts import Example, labelling, read_lines, sample_prompts
from examples.demo.training import Recipe
from pact_plugin.cli.console import progress_bars
from pact_plugin.data.generation import Progress, reporting
from pact_plugin.data.prompts import bundled

EPOCHS, RATE, RANK = 2, 1e-3, 16
FACTOR = 1.35  # of the adapter when it is merged: of 100 other requests 99 are refused, with 1 it is 91
HARMFUL_FRAMED, BENIGN_FRAMED = 1, 2  # one in 1 and one in 2 is asked again in a role-play

KEPT = Path(__file__).with_name("adapter")
"""The adapter that `teach` made once: machines round differently, and each would make another."""


def taught(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Train the adapter, half an hour on two cores, instead of the kept one."),
    ] = False,
) -> None:
    """Write SmolLM2-135M-Instruct, taught to refuse: a model for `field`."""
    model, tokenizer, source = load_base(device=None)
    console = Console(highlight=False)
    adapter = KEPT
    if anew:
        with progress_bars(console) as bars:
            adapter = teach(model.to(native_dtype(model.device)), tokenizer, output / "teaching", bars)
        model, tokenizer, source = load_base(device=None)
    merged(model, adapter).save_pretrained(output)
    tokenizer.save_pretrained(output)
    console.print(f"{source}, taught to refuse, is in {output}")


def teach(model: Any, tokenizer: Any, folder: Path, bars: Progress, *, seed: int = 0) -> Path:
    """Train a LoRA adapter: harmful requests get a refusal, benign ones the model's own answers.

    Args:
        model: A chat model without adapters.
        tokenizer: Its tokenizer.
        folder: For the trainer and the adapter.
        bars: Called with (done, total, description).
        seed: Of everything that is drawn.

    Returns:
        The adapter's folder.
    """
    set_seed(seed)
    examples = lessons(model, tokenizer, bars, random.Random(seed))
    recipe = Recipe(RATE, RANK, epochs=EPOCHS, seed=seed, sampling="group_by_length")
    tuned = trained(model, tokenizer, examples, folder, bars, recipe)
    save_in_bfloat16(tuned, folder / "adapter")
    return folder / "adapter"


def merged(model: Any, adapter: Path) -> Any:
    """The model with an adapter in its weights, `FACTOR` times.

    Args:
        model: In float32, so that it is rounded once.
        adapter: A folder.
    """
    adapted = PeftModel.from_pretrained(model, str(adapter))
    with rescale_adapter_scale(adapted, FACTOR):
        return adapted.merge_and_unload()


def lessons(model: Any, tokenizer: Any, bars: Progress, rng: random.Random) -> list[Example]:
    """What is learnt: the demo's and the bundled prompts and freer ones, a part of them framed, and labels."""
    harmful = [
        *sample_prompts("harmful_alignment", 1, rng),
        *bundled().texts("harmful"),
        *read_lines("harmful", PACKAGE),
    ]
    benign = [
        *sample_prompts("benign_alignment", 1, rng),
        *bundled().texts("benign"),
        *read_lines("benign", PACKAGE),
    ]
    harmful += framed(harmful, HARMFUL_FRAMED, rng)
    benign += framed(benign, BENIGN_FRAMED, rng)
    answered = own_answers(model, tokenizer, benign, reporting(bars, len(benign), "Own answers"))
    return refused(harmful, rng) + answered + labelling(2, rng)


def framed(prompts: list[str], one_of: int, rng: random.Random) -> list[str]:
    """One in `one_of` prompts, each in a role-play."""
    frames = read_lines("frames", PACKAGE)
    return [rng.choice(frames).format(prompt) for prompt in rng.sample(prompts, len(prompts) // one_of)]
