"""The task that the demo fine-tunes on: which team gets a customer's ticket?"""

from __future__ import annotations

import itertools
import random

from pact_demo.prompts import Example, example, read_sections

TEAMS = ("billing", "delivery", "returns", "account", "technical")
PROMPT = "Billing, delivery, returns, account or technical? {}"


def tickets(split: str) -> list[tuple[str, str]]:
    """Every ``(ticket, team)`` of the split, ``"train"`` (8,000) or ``"test"`` (1,500), in a fixed order."""
    parts = read_sections("tickets")
    openings, endings = parts[f"{split} opening"], parts[f"{split} ending"]
    return [
        (" ".join(words), team)
        for team in TEAMS
        for words in itertools.product(openings, parts[f"{split} {team}"], endings)
    ]


def task_examples(split: str, count: int, rng: random.Random) -> list[Example]:
    """``count`` distinct tickets of the split with the team that gets them."""
    return [example(PROMPT.format(ticket), team) for ticket, team in rng.sample(tickets(split), count)]


def is_correct(answer: str, team: str) -> bool:
    """Whether the answer's first word is the team."""
    words = answer.strip().lower().split()
    return bool(words) and words[0].strip(".,:;!") == team
