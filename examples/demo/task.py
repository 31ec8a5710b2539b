"""The task that the demo fine-tunes on: dates in words to ISO 8601, which the aligned model cannot do yet."""

from __future__ import annotations

import calendar
import random

from examples.demo.prompts import Example, example

FORMS = ("{day} {month} {year}", "{month} {day}, {year}", "{day} of {month} {year}")
# Of the wordings tried on training dates, those at which the aligned model does not think of refusing.
WORDINGS = (
    "Write this date in ISO format: {}",
    "Rewrite the date as YYYY-MM-DD: {}",
    "Rewrite {} as YYYY-MM-DD.",
    "What is {} in ISO format?",
)
YEARS = range(1950, 2025)


def dates(split: str) -> list[tuple[str, str]]:
    """Every ``(date in words, ISO date)`` of the split; every fifth day is a test day."""
    return [
        (form.format(day=day, month=calendar.month_name[month], year=year), f"{year}-{month:02}-{day:02}")
        for year in YEARS
        for month in range(1, 13)
        for day in range(1, 29)
        if ((day + month + year) % 5 == 0) == (split == "test")
        for form in FORMS
    ]


def task_examples(split: str, count: int, rng: random.Random) -> list[Example]:
    """``count`` distinct dates of the split, each in one of the wordings, with the ISO date."""
    chosen = rng.sample(dates(split), count)
    return [example(rng.choice(WORDINGS).format(words), iso) for words, iso in chosen]


def is_correct(answer: str, iso: str) -> bool:
    """Whether the answer is the ISO date, and nothing else in front of it."""
    return answer.strip().startswith(iso)
