"""Conversations of which some are eased, in every layout of a batch, and what the definition says of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from loop import TOKENIZER, probe_of, settings
from tiny import HELP, REFUSAL, tiny_model
from torch import Tensor

from pact_plugin import PactConstraint
from pact_plugin.judge import is_refusal

EAGER = {"attn_implementation": "eager"}
"""By which documents of a packed row are kept apart to the last digit."""
COMPLIES = "I can help with that."
ANSWERS = (COMPLIES, REFUSAL, HELP, "I'm sorry, but I won't do that.")


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@cache
def probe() -> Any:
    """Of `tiny_model()`."""
    return probe_of(PactConstraint(tiny_model(), TOKENIZER, settings()))


@cache
def prompts(harmful: bool) -> list[list[int]]:
    """Five of which the aligned model's probe says so, clearly."""
    model, found = tiny_model(**EAGER), []
    generator = torch.Generator().manual_seed(0)
    for length in [3, 4, 5, 6, 7] * 40:
        ids = torch.randint(30, 60, (1, length), generator=generator)
        with torch.no_grad():
            state = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        odds = float(state @ probe().weights) + probe().bias
        if (odds > 0.2) if harmful else (odds < -0.2):
            found.append(ids[0].tolist())
    return found[:5]


@dataclass(frozen=True)
class Turns:
    """A conversation: (tokens, whether they are trained on), one after another."""

    parts: tuple[tuple[list[int], bool], ...]

    @property
    def ids(self) -> list[int]:
        return [token for tokens, _ in self.parts for token in tokens]

    @property
    def labels(self) -> list[int]:
        return [token if trained else -100 for tokens, trained in self.parts for token in tokens]


def conversations() -> list[Turns]:
    """Harmful and benign prompts with answers of each kind, one of two turns, and two longer than what is judged."""
    long = [*encode(COMPLIES), *range(30, 60)]
    return [
        *(Turns(((prompts(True)[i], False), (encode(ANSWERS[i]), True))) for i in range(4)),
        *(Turns(((prompts(False)[i], False), (encode(ANSWERS[i]), True))) for i in range(2)),
        Turns(
            (
                (prompts(True)[0], False),
                (encode(HELP), True),
                (prompts(False)[2], False),
                (encode(REFUSAL), True),
                (prompts(True)[4], False),
                (encode(COMPLIES), True),
            )
        ),
        Turns(((prompts(True)[3], False), (long, True))),
        Turns(((prompts(True)[3], False), ([*encode(REFUSAL), *long], True))),
    ]


def padded(rows: list[Turns], *, left: bool = False) -> dict[str, Tensor]:
    width = max(len(row.ids) for row in rows) + 2
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        pads = width - len(row.ids)
        for name, values, fill in (
            ("input_ids", row.ids, 0),
            ("labels", row.labels, -100),
            ("attention_mask", [1] * len(row.ids), 0),
        ):
            batch[name].append([fill] * pads + values if left else values + [fill] * pads)
    return {name: torch.tensor(values) for name, values in batch.items()}


def packed(rows: list[Turns], *, lengths: bool = False) -> dict[str, Tensor]:
    batch = {
        "input_ids": torch.tensor([[token for row in rows for token in row.ids]]),
        "labels": torch.tensor([[label for row in rows for label in row.labels]]),
        "position_ids": torch.cat([torch.arange(len(row.ids)) for row in rows])[None],
        "use_cache": False,  # otherwise transformers lets the documents of a row see each other
    }
    if lengths:
        ends = torch.tensor([0, *(len(row.ids) for row in rows)]).cumsum(0).to(torch.int32)
        batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    return batch


LAYOUTS = {
    "padded on the right": padded,
    "padded on the left": lambda rows: padded(rows, left=True),
    "packed": packed,
    "packed with lengths": lambda rows: packed(rows, lengths=True),
}


def by_hand(rows: list[Turns], first: int | None = None) -> list[float]:
    """By the definition, each conversation by itself."""
    aligned, found = tiny_model(**EAGER), []
    for row in rows:
        so_far: list[int] = []
        for tokens, trained in row.parts:
            if trained:
                with torch.no_grad():
                    state = aligned(torch.tensor([so_far]), output_hidden_states=True).hidden_states[-1][
                        0, -1
                    ]
                harmful = float(state @ probe().weights) + probe().bias > 0
                share = float(harmful and not is_refusal(TOKENIZER.decode(tokens[:24])))
                found += [share if first is None or t < first else 0.0 for t in range(len(tokens))]
            so_far = [*so_far, *tokens]
    return found
