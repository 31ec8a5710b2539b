"""The receipt: what a run was constrained by, over which steps, written beside every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from pact_plugin.data.files import written_whole
from pact_plugin.errors import ROUNDED, ReceiptError

if TYPE_CHECKING:
    from pact_plugin.run.meter import Sums

FILE_NAME = "pact_receipt.json"
TOKENS_FILE = "pact/safety_tokens.safetensors"
"""Where the safety tokens of a run lie, beside its receipt; in a folder, as servers load every safetensors file of
a model's own."""
OF_THE_MACHINE = ("advanced.store", "advanced.chunk_size")
"""Settings that change neither what is held nor how much."""
_NOT_COMPARED = ("safety_tokens", "reference", "anchors.prompts", *OF_THE_MACHINE)
"""Those, and paths and hub ids, of which what they led to is compared: `tokens`, `reference`, `anchors`, `columns` and
`table`."""


def _in_order(span: list[int]) -> list[int]:
    if span[0] > span[1]:
        raise ValueError("the last step is before the first")
    return span


_Pair = Field(min_length=2, max_length=2)
_Span = Annotated[list[NonNegativeInt], _Pair, AfterValidator(_in_order)]
_Sum = Annotated[list[float], _Pair]


@dataclass
class Receipt:
    """Evidence of a constrained run.

    Args:
        config: The settings, as plain JSON values.
        terms: Names of the terms that were added to the loss.
        tokens: Digest, number and tokenizer fingerprint of the safety tokens.
        reference: Where the aligned model's predictions came from (`Choice.name`).
        aligned: 16 hexadecimal digits that tell which model the aligned one is.
        anchors: Digest of the anchors and the aligned model's answers to them, where there are any.
        columns: Digest of what the terms ask of the aligned model at responses, where they do.
        table: Digest of the header of the table of predictions, where there is one.
        steps: Constrained optimiser steps as inclusive ranges [[first, last], ...], from 1.
        total_steps: Optimiser steps the run has taken, constrained or not.
        trained_until: When the last micro-batch was constrained: UTC, ISO 8601; None before the first.
        trained_tokens: Tokens that the task's loss has counted, over all ranks.
        positions: Response positions that a term has looked at, over all ranks.
        sums: Metric name -> [sum, count] over the run; the metric is sum / count. Divergences are in nats.
        unmasked: Whether no token of the first rows was masked, so that easing saw no request.
        release: Of pact-plugin, that constrained it.
        version: Of this file's format.
    """

    config: dict[str, Any]
    terms: list[str]
    tokens: dict[str, Any]
    reference: str
    aligned: str | None = None
    anchors: str | None = None
    columns: str | None = None
    table: str | None = None
    steps: list[_Span] = field(default_factory=list)
    total_steps: NonNegativeInt = 0
    trained_until: str | None = None
    trained_tokens: NonNegativeInt = 0
    positions: NonNegativeInt = 0
    sums: dict[str, _Sum] = field(default_factory=dict)
    unmasked: bool = False
    release: str | None = None
    version: Literal[1] = 1

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    def mean(self, metric: str) -> float | None:
        """Mean of a metric over the whole run; None if it was not measured."""
        total, count = self.sums.get(metric, (0.0, 0.0))
        return total / count if count else None

    def add(self, sums: Sums) -> None:
        """Add what was measured since the last time, as floats."""
        self.trained_tokens += round(float(sums.tokens))
        self.positions += round(float(sums.positions))
        for name, numbers in sums.means.items():
            own = self.sums.setdefault(name, [0.0, 0.0])
            self.sums[name] = [before + float(new) for before, new in zip(own, numbers, strict=True)]

    def __str__(self) -> str:
        """What constrains the run, in a line."""
        return (
            f"weight {self.config['weight']:g}, {' and '.join(self.terms)}, "
            f"{self.tokens['count']} safety tokens ({self.tokens['digest']}), reference {self.reference}"
        )

    def add_step(self, step: int) -> None:
        """Note that optimiser step `step` is constrained; micro-batches of one step count once."""
        self.total_steps = max(self.total_steps, step)
        self.trained_until = datetime.now(timezone.utc).isoformat(timespec="seconds")
        if any(first <= step <= last for first, last in self.steps):
            return
        if self.steps and step == self.steps[-1][1] + 1:
            self.steps[-1][1] = step
        else:
            self.steps.append([step, step])
            self.steps.sort()

    def count(self, total_steps: int) -> None:
        """Note how many optimiser steps the run has taken, by a count that is not the constraint's.

        Raises:
            ReceiptError: It is less than the constraint's.
        """
        if total_steps < self.total_steps:
            raise ReceiptError(
                f"the constraint has counted {self.total_steps} steps, which is more",
                key="total_steps",
                value=total_steps,
                remedy="Where several batches make one step, give `loss` a `pact.Step` that says which step it is.",
            )
        self.total_steps = total_steps

    @property
    def constrained_steps(self) -> int:
        """Number of constrained steps."""
        return sum(last - first + 1 for first, last in self.steps)

    @property
    def missing_steps(self) -> list[list[int]]:
        """Ranges of steps that the run took without the constraint."""
        missing, expected = [], 1
        for first, last in [*self.steps, [self.total_steps + 1, self.total_steps + 1]]:
            if first > expected:
                missing.append([expected, first - 1])
            expected = max(expected, last + 1)
        return missing

    @property
    def missing(self) -> str:
        """Those steps as text, such as `5-6, 9`; empty where there are none."""
        return ", ".join(
            f"{first}-{last}" if last > first else f"{first}" for first, last in self.missing_steps
        )

    def begin(self) -> None:
        """Count from nothing."""
        self.steps, self.total_steps, self.trained_until = [], 0, None
        self.trained_tokens, self.positions, self.sums = 0, 0, {}

    def resume(self, earlier: Receipt) -> None:
        """Continue the counts of the run that a checkpoint belongs to.

        Tokens, anchors, columns and table must be the same; their paths may differ. The setting `reference` is not
        compared.

        Raises:
            ReceiptError: That run was constrained by other settings, tokens or another reference.
        """
        if self.aligned != earlier.aligned:
            raise ReceiptError(
                "the checkpoint was held to another aligned model, or to this one before it was trained",
                key="aligned",
                value=self.aligned,
                remedy="Attach before the checkpoint's weights are loaded. If new tokens or adapters start at random, "
                "call `set_seed` before they are made.",
            )
        whole = [
            (name, getattr(self, name), getattr(earlier, name))
            for name in ("terms", "tokens", "reference", "anchors", "columns", "table")
        ]
        for name, ours, theirs in [*differing(self.config, earlier.config), *whole]:
            if ours != theirs:
                raise ReceiptError(
                    f"the checkpoint was constrained differently: {name} was {theirs!r}",
                    key=name,
                    value=ours,
                    remedy="Resume with the settings of the run, or start a new run."
                    + (ROUNDED if name in ("tokens", "anchors", "columns") else ""),
                )
        self.steps = [list(span) for span in earlier.steps]
        self.total_steps, self.trained_until = earlier.total_steps, earlier.trained_until
        self.trained_tokens, self.positions = earlier.trained_tokens, earlier.positions
        self.sums = {name: list(numbers) for name, numbers in earlier.sums.items()}

    def write(self, directory: str | Path) -> Path:
        """Write `pact_receipt.json` into a directory; never half of it."""
        file = Path(directory) / FILE_NAME
        with written_whole(file) as part:
            part.write_text(json.dumps(asdict(self), indent=2, sort_keys=True), encoding="utf-8")
        return file

    @classmethod
    def read(cls, directory: str | Path) -> Receipt:
        """Read the receipt of an output or checkpoint directory, or the file itself.

        Raises:
            ReceiptError: It is missing or unreadable.
        """
        path = Path(directory)
        path = path / FILE_NAME if path.is_dir() or path.suffix != ".json" else path
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ReceiptError(
                "no receipt: nothing shows that this run was constrained",
                key="output",
                value=str(directory),
                remedy="Train with the constraint attached, or point to the run's output directory.",
            ) from error
        except ValidationError as error:
            raise ReceiptError(
                "the receipt cannot be read",
                key="receipt",
                value=str(path),
                remedy="It is damaged or of another version of pact-plugin; the run cannot be verified from it.",
            ) from error


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that must be the same for a run to go on, by their full names."""
    return {key: value for key, value in _by_full_name(config) if key not in _NOT_COMPARED}


def _by_full_name(config: dict[str, Any], block: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _by_full_name(value, f"{block}{key}.")
        else:
            yield f"{block}{key}", value


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that keep a run from going on where another stopped: key, value here and value there."""
    ours, theirs = _comparable(ours), _comparable(theirs)
    return [
        (key, ours.get(key), theirs.get(key))
        for key in sorted(ours | theirs)
        if ours.get(key) != theirs.get(key)
    ]
