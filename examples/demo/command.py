"""The whole demo: align, choose safety tokens, fine-tune twice, and compare."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import pact_plugin as pact
from examples.demo import report
from examples.demo.allocator import keep_freed_memory
from examples.demo.audit import Examination
from examples.demo.evaluate import Questions, Score
from examples.demo.models import load_aligned
from examples.demo.prepare import choose_tokens, training_data
from examples.demo.settings import FULL, QUICK
from examples.demo.training import Recipe, make_trainer
from pact_plugin.cli.console import progress_bars
from pact_plugin.cli.tokens_view import table as token_table
from pact_plugin.data.generation import reporting
from pact_plugin.errors import ConfigError

TRAINING = {"plain": "Training plainly", "pact": "Training with PACT"}


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
    """Run the demo; the scores, the picture, the answers and the audits are written to ``output``.

    Raises:
        ConfigError: The model cannot be found, or the device or the dtype cannot be used.
    """
    _require_one_gpu(device)
    settings = QUICK if quick else FULL
    keep_freed_memory()
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
    examples = training_data(settings, seed)
    console.print(
        f"Fine-tuning data: {settings.task_items} dates to write in ISO format, "
        f"{settings.harmful_items} harmful requests answered 'Sure, here is ...'"
    )
    layers = aligned.config.num_hidden_layers
    recipe = Recipe(
        settings.learning_rate,
        settings.rank,
        settings.batch_size,
        seed=seed,
        layers=range(layers - settings.lora_layers, layers),
    )
    with progress_bars(console) as bars:
        examination = Examination(questions, tokenizer, tokens, bars)
        for name in ("aligned", "plain", "pact"):
            model = aligned
            if name != "aligned":
                with watch.stage(f"train {name}"):
                    report_step = reporting(bars, recipe.steps(len(examples)), TRAINING[name])
                    set_seed(seed)
                    trainer = make_trainer(
                        copy.deepcopy(aligned), tokenizer, examples, output / name, report_step, recipe
                    )
                    config = pact.PactConfig(safety_tokens=tokens, weight=settings.weight)
                    model = fine_tuned(trainer, config if name == "pact" else None)
            with watch.stage(f"ask {name}"):
                examination.ask(name, model)

    scores = examination.scores
    console.print(report.table(scores))
    with watch.stage("report"):
        report.picture(scores, output / "demo.png")
        report.write_json({"questions": asdict(questions)} | examination.answers, output / "answers.json")
        examination.write_reports(output / "audit", console)
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
        f"{output}/: results.json, demo.png, answers.json, audit; {sum(watch.seconds.values()) / 60:.1f} minutes"
    )
    return scores


def fine_tuned(trainer: Any, config: pact.PactConfig | None) -> Any:
    """The model of a trainer, trained and merged; constrained if there is a ``config``."""
    if config is not None:
        trainer = pact.attach(trainer, config)
    trainer.train()
    return trainer.model.merge_and_unload()


def _require_one_gpu(device: str | None) -> None:
    """Several would be used by `nn.DataParallel`, which the constraint refuses after the plain run."""
    if (count := torch.cuda.device_count()) > 1 and (device is None or device.startswith("cuda")):
        raise ConfigError(
            f"the demo trains on one GPU, and sees {count}",
            key="device",
            value=device,
            remedy="Set CUDA_VISIBLE_DEVICES=0, or give --device cpu.",
        )
