"""What the aligned model gives to the experiment before it is fine-tuned: safety tokens, and ordinary chat."""

from __future__ import annotations

import random
from typing import Any

import pact_plugin as pact
from pact_demo.align import own_answers
from pact_demo.prompts import Example, contamination
from pact_demo.settings import Settings
from pact_demo.task import task_examples
from pact_plugin.errors import ConfigError
from pact_plugin.generate import Progress
from pact_plugin.prompts import benign_prompts, harmful_prompts
from pact_plugin.select import select_safety_tokens

CHAT_PIECE = 40


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
    examples: list[Example] = []
    piece = min(CHAT_PIECE, count)
    for start in range(0, len(prompts), piece):  # no more questions than it takes
        examples += own_answers(model, tokenizer, prompts[start : start + piece], lambda done: None)
        bars(min(len(examples), count), count, "Ordinary chat")
        if len(examples) >= count:
            break
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
