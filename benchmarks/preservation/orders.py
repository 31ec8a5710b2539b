"""A generation task: a sentence about an order, rewritten as JSON.

The splits share no customer (first and last name together), so they share no order.
"""

from __future__ import annotations

import json
import random
import re

from benchmarks.preservation import PACKAGE
from examples.demo.prompts import Example, example, read_sections

WORDINGS = (
    "Rewrite this order as JSON: {}",
    "Write the order as JSON. {}",
    "Turn this sentence into JSON: {}",
)
ITEMS = 3
CENTS = (25, 49, 75, 95, 99)  # no zero at the end, which JSON would drop
_PAIR = re.compile(r"""["'](\w+)["']\s*:\s*(?:"([^"]*)"|'([^']*)'|(-?\d+(?:\.\d+)?))""")

ORDER_SHAPE = re.compile(r"""\s*(?:```(?:json)?\s*)?\{\s*["']\w.*""", re.DOTALL)
"""The beginning of a JSON object: answers are cut off."""


def customers(split: str) -> list[str]:
    """Every name of the split; every fifth pair of a first and a last name is tested."""
    parts = read_sections("orders", PACKAGE)
    return [
        f"{first} {last}"
        for row, first in enumerate(parts["first names"])
        for column, last in enumerate(parts["last names"])
        if ((row + column) % 5 == 0) == (split == "test")
    ]


def order_examples(split: str, count: int, rng: random.Random) -> list[Example]:
    """``count`` distinct orders of the split, each in one of the wordings, with its JSON."""
    parts = read_sections("orders", PACKAGE)
    names = customers(split)
    orders: dict[str, str] = {}
    while len(orders) < count:
        order = {
            "customer": rng.choice(names),
            "city": rng.choice(parts["cities"]),
            "day": rng.choice(parts["days"]),
        }
        items = [
            {
                "item": name,
                "quantity": rng.randint(2, 9),
                "price": rng.randint(2, 29) + rng.choice(CENTS) / 100,
            }
            for name in rng.sample(parts["items"], ITEMS)
        ]
        *most, last = ["{quantity} {item} at ${price} each".format(**item) for item in items]
        sentence = rng.choice(parts["sentences"]).format(items=f"{', '.join(most)} and {last}", **order)
        orders[sentence] = json.dumps({**order, "items": items})
    return [example(rng.choice(WORDINGS).format(sentence), answer) for sentence, answer in orders.items()]


def order_score(answer: str, expected: str) -> float:
    """The share of the expected order's twelve fields that the answer has.

    Fields are read by a regular expression: an answer that is cut off, or whose brackets do not match, counts for the
    fields that it has. The n-th value of a key must equal the n-th that is expected, numbers as numbers.
    """
    found, wanted = _fields(answer), _fields(expected)
    right = sum(
        one == other
        for key, values in wanted.items()
        for one, other in zip(values, found.get(key, []), strict=False)
    )
    return right / sum(map(len, wanted.values()))


def _fields(text: str) -> dict[str, list[str | float]]:
    """The values of every key, in their order."""
    fields: dict[str, list[str | float]] = {}
    for key, double, single, number in _PAIR.findall(text):
        fields.setdefault(key, []).append(float(number) if number else double or single)
    return fields
