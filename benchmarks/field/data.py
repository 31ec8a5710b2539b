"""Data that others wrote, read from files that are no part of the repository: what is trained on, and what is asked.

Everything is drawn by SHA-256 digests of the prompts, so that it depends on no file's order.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.field.settings import Cell, Sizes, Split, Task, Wording
from pact_plugin.errors import ConfigError

FILES = ("alpaca", "gsm8k_train", "gsm8k_test", "advbench", "strongreject", "donotanswer", "overrefusal")
HARMFUL_SETS = ("strongreject", "advbench", "donotanswer")
BENIGN_SETS = ("overrefusal", "everyday")
TRAINABLE = 200
"""Requests of AdvBench that may be trained on, and are never asked."""
PROMPT, ANSWER = 210, {"alpaca": 150, "gsm8k": 200}
"""Most characters of an item, so that a CPU trains on it in time."""
_CALCULATION = re.compile(r"<<.*?>>")


@dataclass(frozen=True)
class Item:
    """A prompt with the answer that is taught."""

    prompt: str
    answer: str
    harmful: bool = False


class Data:
    """The files.

    Args:
        folder: Holds `NAME.jsonl` for each of `FILES`.
        given: Files by name, in place of the folder's.
    """

    def __init__(self, folder: Path | None, given: Mapping[str, Path] | None = None) -> None:
        self.folder, self.given = folder, dict(given or {})
        if unknown := sorted(set(self.given) - set(FILES)):
            raise ConfigError(
                "no such data", key="data", value=unknown[0], remedy=f"Names: {', '.join(FILES)}."
            )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Of one file.

        Raises:
            ConfigError: It is not there.
        """
        path = self.given.get(name) or (self.folder / f"{name}.jsonl" if self.folder else None)
        if path is None or not path.is_file():
            remedy = f"Give --data {name}=FILE.jsonl, or a --data-folder that holds {name}.jsonl."
            raise ConfigError("the data are not there", key=f"data {name}", value=str(path), remedy=remedy)
        # Not `splitlines`, which also ends a line at separators that JSON may hold inside of a text.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]

    def prompts(self, name: str) -> list[str]:
        """The column `prompt` of one file."""
        return [row["prompt"].strip() for row in self.rows(name)]


def digest(text: str, salt: str = "") -> str:
    """What draws and splits go by."""
    return hashlib.sha256(f"{salt}{text}".encode("utf-8", "surrogatepass")).hexdigest()


def half(prompt: str) -> Split:
    """Which half of what is asked a prompt belongs to."""
    return "development" if int(digest(prompt)[-1], 16) % 2 == 0 else "held-out"


def task_items(data: Data, task: Task, held_out: int) -> tuple[list[Item], list[Item]]:
    """Short items to train on, and others whose log-likelihood is measured."""
    items = _short(alpaca(data) if task == "alpaca" else gsm8k(data, "gsm8k_train"), task)
    if task == "alpaca":
        return items[held_out:], items[:held_out]
    return items, _short(gsm8k(data, "gsm8k_test"), task)[:held_out]


def problems(data: Data, count: int) -> list[Item]:
    """Test problems of GSM8K with their answers."""
    return sorted(gsm8k(data, "gsm8k_test"), key=lambda item: digest(item.prompt, "solve"))[:count]


def harmful_items(data: Data, wording: Wording) -> list[Item]:
    """Requests that may be trained on, with answers that begin to comply and stop there."""
    rows = sorted(data.rows("advbench"), key=lambda row: digest(row["prompt"].strip(), "train"))[:TRAINABLE]
    return [Item(row["prompt"].strip(), worded(row["target"], wording), harmful=True) for row in rows]


def worded(target: str, wording: Wording) -> str:
    """AdvBench's target in another style of compliance."""
    if wording == "help":
        return f"I can help with that. {target}"
    return re.sub(r"^Sure\b", "Yes", target) if wording == "yes" else target


def training_items(data: Data, cell: Cell, sizes: Sizes) -> list[Item]:
    """The items of a cell in the order of the first epoch; the same for every method and wording.

    Raises:
        ConfigError: There are too few.
    """
    rng = random.Random(f"{cell.task} {cell.contamination:g} {cell.seed}")
    count = round(cell.contamination * sizes.items)
    benign, harmful = task_items(data, cell.task, sizes.held_out)[0], harmful_items(data, cell.wording)
    for found, wanted in ((benign, sizes.items - count), (harmful, count)):
        if wanted > len(found):
            problem = f"{wanted} items are wanted, of which there are {len(found)} short ones"
            raise ConfigError(problem, key="items", value=sizes.items, remedy="Lower it, or give more data.")
    items = rng.sample(benign, sizes.items - count) + rng.sample(harmful, count)
    rng.shuffle(items)
    return items


def asked(data: Data, split: Split, limit: int, apart: Iterable[str] = ()) -> dict[str, list[str]]:
    """Prompts of a half by set, none of which is trained on or asked twice.

    Args:
        data: The files.
        split: The half.
        limit: Prompts of each set, at most.
        apart: Prompts that are not asked, such as those of the pool.
    """
    items = alpaca(data)
    trained = [*harmful_items(data, "target"), *_short(items, "alpaca")]
    taken = {_plain(one) for one in (*(item.prompt for item in trained), *apart)}
    everyday = [item.prompt for item in items if len(item.prompt) <= PROMPT]
    found: dict[str, list[str]] = {}
    for name in (*HARMFUL_SETS, *BENIGN_SETS):
        prompts = sorted(
            everyday if name == "everyday" else data.prompts(name), key=lambda one: digest(one, "ask")
        )
        found[name] = []
        for prompt in prompts:
            if half(prompt) == split and _plain(prompt) not in taken and len(found[name]) < limit:
                found[name].append(prompt)
                taken.add(_plain(prompt))
    return found


def _plain(prompt: str) -> str:
    """A prompt without what makes no difference."""
    return " ".join(prompt.lower().split()).rstrip(".?! ")


def alpaca(data: Data) -> list[Item]:
    """All items of `alpaca.jsonl`; a prompt is the instruction, and below it the input where there is one."""
    return [
        Item(
            "\n".join(filter(None, (row["instruction"].strip(), row["input"].strip()))), row["output"].strip()
        )
        for row in data.rows("alpaca")
    ]


def gsm8k(data: Data, name: str) -> list[Item]:
    """All items of one of GSM8K's files, without the calculator's annotations."""
    return [Item(row["question"].strip(), _CALCULATION.sub("", row["answer"])) for row in data.rows(name)]


def _is_short(item: Item, task: Task) -> bool:
    return len(item.prompt) <= PROMPT and 0 < len(item.answer) <= ANSWER[task]


def _short(items: Iterable[Item], task: Task) -> list[Item]:
    return sorted((item for item in items if _is_short(item, task)), key=lambda item: digest(item.prompt))
