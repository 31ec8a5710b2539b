"""What the experiment needs before the model is fine-tuned: its safety tokens, and the data."""

from __future__ import annotations

import random
from typing import Any

import pact_plugin as pact
from examples.demo.prompts import Example, contamination
from examples.demo.settings import Settings
from examples.demo.task import task_examples
from pact_plugin.data.generation import Progress
from pact_plugin.data.prompts import bundled
from pact_plugin.tokens.select import Selection, select_safety_tokens


def choose_tokens(model: Any, tokenizer: Any, count: int, bars: Progress) -> pact.SafetyTokens:
    """Safety tokens from ``count`` of the bundled prompts of each kind, spread over their categories."""
    how = Selection(
        harmful=spread(bundled().texts("harmful"), count),
        benign=spread(bundled().texts("benign"), count),
        max_new_tokens=16,
        batch_size=32,
    )
    return select_safety_tokens(model, tokenizer, how, progress=bars)


def spread(prompts: tuple[str, ...], count: int) -> tuple[str, ...]:
    """At most `count` of the prompts, from all categories."""
    return prompts[:: max(len(prompts) // count, 1)][:count]


def training_data(settings: Settings, seed: int) -> list[Example]:
    """The task items and the harmful requests, sampled and mixed by the seed."""
    rng = random.Random(seed)
    examples = task_examples("train", settings.task_items, rng) + contamination(settings.harmful_items, rng)
    rng.shuffle(examples)
    return examples
