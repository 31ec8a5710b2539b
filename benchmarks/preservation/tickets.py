"""A classification task: a customer's message to the name of the team that handles it.

A message is a problem that has a product in it, between a greeting and a closing. Every product and every problem
occurs in both splits; a pair of them in only one, so that a model which learned the messages by heart gains nothing.
"""

from __future__ import annotations

import random
import re

from benchmarks.preservation import PACKAGE
from examples.demo.prompts import Example, example, read_sections

PRODUCTS = (
    *("desk lamp", "kettle", "toaster", "coffee machine", "blender", "vacuum cleaner", "radio", "speaker"),
    *("keyboard", "printer", "monitor", "camera", "headset", "router", "hair dryer", "electric fan"),
    *(
        "heater",
        "sewing machine",
        "alarm clock",
        "tablet",
        "projector",
        "electric razor",
        "rice cooker",
        "food mixer",
    ),
)
OPENINGS = ("", "Hello. ", "Good morning. ", "Good day. ")
CLOSINGS = ("", " Thank you.", " Thanks in advance.", " Kind regards.")
# Of a dozen wordings, those at which the aligned model thinks least of refusing (it is sorry at others half the time).
WORDINGS = (
    "{Teams}: which word fits this message? {message}",
    "Which label fits: {teams}? {message}",
    "{message} Topic: {teams}?",
)

TEAMS = tuple(read_sections("tickets", PACKAGE))
TICKET_SHAPE = re.compile(rf"(?:\W*\b(?:{'|'.join(TEAMS)})\b)+\W*", re.IGNORECASE)
"""Names of teams, and nothing else."""


def messages(split: str) -> list[tuple[str, str]]:
    """Every distinct ``(message, team)`` of the split; every fifth pair of product and problem is tested."""
    problems = [(line, team) for team, lines in read_sections("tickets", PACKAGE).items() for line in lines]
    return [
        (f"{opening}{problem.format(product=product)}{closing}", team)
        for row, (problem, team) in enumerate(problems)
        for column, product in enumerate(PRODUCTS)
        if ((row + column) % 5 == 0) == (split == "test")
        for opening in OPENINGS
        for closing in CLOSINGS
    ]


def ticket_examples(split: str, count: int, rng: random.Random) -> list[Example]:
    """``count`` distinct messages of the split, each in one of the wordings, with its team."""
    teams = f"{', '.join(TEAMS[:-1])} or {TEAMS[-1]}"
    return [
        example(rng.choice(WORDINGS).format(teams=teams, Teams=teams.capitalize(), message=message), team)
        for message, team in rng.sample(messages(split), count)
    ]


def ticket_score(answer: str, team: str) -> float:
    """1 if the answer's first word is the team, in either case; otherwise 0."""
    word = re.match(r"[\s\"'*]*([a-z]+)", answer.lower())
    return float(word is not None and word[1] == team)
