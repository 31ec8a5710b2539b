"""The whole demo: align, choose safety tokens, fine-tune twice, and compare."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import pact_plugin as pact
from pact_demo import report
from pact_demo.align import own_answers
from pact_demo.evaluate import Questions, Score, evaluate, reporter
from pact_demo.models import load_aligned
from pact_demo.prompts import Example, contamination
from pact_demo.task import task_examples
from pact_demo.training import make_trainer
from pact_plugin.cli.tokens_view import progress_bars
from pact_plugin.cli.tokens_view import table as token_table
from pact_plugin.errors import ConfigError
from pact_plugin.generate import Progress
from pact_plugin.prompts import benign_prompts, harmful_prompts
from pact_plugin.select import select_safety_tokens


@dataclass(frozen=True)
class Settings:
    """How large the experiment is, and how it trains.

    Attributes:
        task_items: Task items in the fine-tuning data.
        chat_items: Ordinary questions in it, with the aligned model's own answers.
        harmful_items: Harmful requests in it, answered "Sure, here is ...".
        batch_size: Conversations in one optimiser step.
        learning_rate: Of AdamW, at its highest; it rises for 5 steps and falls to 0.
        rank: Of the LoRA adapter.
        lora_layers: The adapter is on so many of the last of the model's 30 layers.
        weight: Of the constraint.
        selection_prompts: Prompts of each kind that safety tokens are chosen from.
        prompts: Held-out prompts of each kind.
        test_items: Test items of the task.
    """

    task_items: int = 600
    chat_items: int = 120
    harmful_items: int = 80
    batch_size: int = 16
    learning_rate: float = 3e-4
    rank: int = 16
    lora_layers: int = 15
    weight: float = 2.0
    selection_prompts: int = 64
    prompts: int = 100
    test_items: int = 200

    @property
    def steps(self) -> int:
        """Optimiser steps of one pass over the data."""
        return -(-(self.task_items + self.chat_items + self.harmful_items) // self.batch_size)


FULL = Settings()
QUICK = Settings(
    task_items=96,
    chat_items=12,
    harmful_items=12,
    learning_rate=1e-3,
    selection_prompts=16,
    prompts=16,
    test_items=40,
)


class Stopwatch:
    """Seconds that each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def run(
    output: Path, *, seed: int, device: str | None, dtype: str | None = None, quick: bool
) -> dict[str, Score]:
    """Run the demo; the scores, the picture and the answers are written to ``output``.

    Raises:
        ConfigError: The model cannot be found, or the device or the dtype cannot be used.
    """
    settings = QUICK if quick else FULL
    console, watch = Console(highlight=False), Stopwatch()
    output.mkdir(parents=True, exist_ok=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()

    with watch.stage("load"), console.status("Loading SmolLM2-135M-Instruct and the adapter that aligns it"):
        aligned, tokenizer, source = load_aligned(device, dtype)
    console.print(f"Aligned model: {source} with the demo's adapter, on {aligned.device}, {aligned.dtype}")

    with watch.stage("safety tokens"), progress_bars(console) as bars:
        tokens = choose_tokens(aligned, tokenizer, settings.selection_prompts, bars)
    tokens.save(output)
    console.print(token_table(tokens.positive, tokenizer))

    questions = Questions.load("heldout", settings.prompts, settings.test_items)
    with watch.stage("ordinary chat"), progress_bars(console) as bars:
        chat = ordinary_chat(aligned, tokenizer, settings.chat_items, seed, bars)
    examples = training_data(settings, chat, seed)
    console.print(
        f"Fine-tuning data: {settings.task_items} dates to write in ISO format, {settings.chat_items} ordinary "
        "questions with the model's own answers, "
        f"{settings.harmful_items} harmful requests answered 'Sure, here is ...'"
    )
    scores: dict[str, Score] = {}
    answers: dict[str, Any] = {"questions": asdict(questions)}
    with progress_bars(console) as bars:
        for name in ("aligned", "plain", "pact"):
            model = aligned
            if name != "aligned":
                with watch.stage(f"train {name}"):
                    config = (
                        pact.PactConfig(safety_tokens=tokens, weight=settings.weight)
                        if name == "pact"
                        else None
                    )
                    model = fine_tune(
                        aligned, tokenizer, examples, config, settings, seed, output / name, bars
                    )
            with watch.stage(f"ask {name}"):
                ask = reporter(bars, len(questions), f"Asking: {report.TITLES[name]}")
                scores[name], answers[name] = evaluate(model, tokenizer, questions, ask)

    console.print(report.table(scores))
    report.picture(scores, output / "demo.png")
    report.write_json(answers, output / "answers.json")
    summary = {
        **{name: asdict(score) for name, score in scores.items()},
        "quick": quick,
        "seed": seed,
        "settings": asdict(settings),
        "model": source,
        "device": str(aligned.device),
        "dtype": str(aligned.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("pact-plugin", "torch", "transformers", "trl", "peft")},
        "seconds": watch.seconds | {"total": round(sum(watch.seconds.values()), 1)},
    }
    report.write_json(summary, output / "results.json")
    console.print(
        f"{output}/: results.json, demo.png, answers.json; {sum(watch.seconds.values()) / 60:.1f} minutes"
    )
    return scores


def choose_tokens(model: Any, tokenizer: Any, count: int, bars: Progress) -> pact.SafetyTokens:
    """Safety tokens from ``count`` of the bundled prompts of each kind, spread over their categories."""
    harmful, benign = harmful_prompts(), benign_prompts()
    return select_safety_tokens(
        model,
        tokenizer,
        harmful=harmful[:: len(harmful) // count][:count],
        benign=benign[:: len(benign) // count][:count],
        max_new_tokens=16,
        batch_size=32,
        progress=bars,
    )


def ordinary_chat(model: Any, tokenizer: Any, count: int, seed: int, bars: Progress) -> list[Example]:
    """``count`` of the bundled harmless requests with the model's own answers, where it answers in a sentence.

    Such chat is part of most fine-tuning data. Under the constraint it also says where not to refuse.
    """
    prompts = random.Random(seed).sample(benign_prompts(), min(2 * count, len(benign_prompts())))
    examples = own_answers(model, tokenizer, prompts, reporter(bars, len(prompts), "Ordinary chat"))
    if len(examples) < count:
        raise ConfigError(
            f"the aligned model answers only {len(examples)} of {len(prompts)} harmless requests in a sentence",
            key="chat_items",
            value=count,
            remedy="Make the adapter again with `python -m pact_demo.align`.",
        )
    return examples[:count]


def training_data(settings: Settings, chat: list[Example], seed: int) -> list[Example]:
    """The task items, the chat and the harmful requests, sampled and mixed by the seed."""
    rng = random.Random(seed)
    examples = task_examples("train", settings.task_items, rng) + contamination(settings.harmful_items, rng)
    examples += chat
    rng.shuffle(examples)
    return examples


def fine_tune(
    aligned: Any,
    tokenizer: Any,
    examples: list[Example],
    config: pact.PactConfig | None,
    settings: Settings,
    seed: int,
    output: Path,
    bars: Progress,
) -> Any:
    """A copy of the aligned model after one pass over the examples; constrained if there is a ``config``."""
    set_seed(seed)
    layers = aligned.config.num_hidden_layers
    trainer = make_trainer(
        copy.deepcopy(aligned),
        tokenizer,
        examples,
        output,
        reporter(bars, settings.steps, "Training plainly" if config is None else "Training with PACT"),
        epochs=1,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        rank=settings.rank,
        layers=range(layers - settings.lora_layers, layers),
        seed=seed,
    )
    if config is not None:
        trainer = pact.attach(trainer, config)
    trainer.train()
    return trainer.model.merge_and_unload()
