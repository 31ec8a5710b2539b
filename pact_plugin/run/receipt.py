"""The receipt: what a run was constrained by, over which steps, written beside every checkpoint."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pact_plugin.config import OWN_REFERENCES
from pact_plugin.errors import ReceiptError

FILE_NAME = "pact_receipt.json"
_VERSION = 1
_OF_ANCHORS = ("anchors", "anchor_prompts", "anchor_tokens", "anchor_ratio")
_DERIVED = ("mean_divergence", "mean_anchor_divergence")


@dataclass
class Receipt:
    """Evidence of a constrained run.

    Args:
        config: The settings, as plain JSON values.
        tokens: Digest, number and tokenizer fingerprint of the safety tokens.
        reference: The kind of reference used.
        store: Digest of the stored reference's header, where there is one.
        steps: Constrained optimiser steps as inclusive ranges [[first, last], ...], from 1.
        total_steps: Optimiser steps the run has taken, constrained or not.
        positions: Response positions constrained, over all ranks.
        divergence: Sum of their divergences in nats.
        anchor_prompts: Prompts that the aligned model has answered, from which anchors are taken in turn.
        anchor_divergence: Sum over the trained tokens of the mean divergence at their anchors' positions, in nats.
        trained_tokens: Tokens that the task's loss has counted, over all ranks.
        version: Of this file's format.
    """

    config: dict[str, Any]
    tokens: dict[str, Any]
    reference: str
    store: str | None = None
    steps: list[list[int]] = field(default_factory=list)
    total_steps: int = 0
    positions: int = 0
    divergence: float = 0.0
    anchor_prompts: int = 0
    anchor_divergence: float = 0.0
    trained_tokens: int = 0
    version: int = _VERSION

    @property
    def anchors_alone(self) -> bool:
        """Whether nothing but the anchors was held (spec clause C10.5)."""
        return bool(self.anchor_prompts) and self.config.get("hold") == "anchors"

    @property
    def mean_divergence(self) -> float | None:
        """At the data's own positions, in nats; None before the first."""
        return self.divergence / self.positions if self.positions else None

    @property
    def mean_anchor_divergence(self) -> float | None:
        """As `pact/anchor_divergence`, over the whole run; None without anchors, or where it was not noted."""
        if not self.anchor_prompts or not self.trained_tokens:
            return None
        return self.anchor_divergence / self.trained_tokens

    def __str__(self) -> str:
        """What constrains the run, in a line."""
        anchors = self.config.get("anchors") if self.anchor_prompts else 0
        by_anchors = f"{anchors} anchors{' alone' if self.anchors_alone else ''}, " if anchors else ""
        return (
            f"objective {self.config['objective']}, weight {self.config['weight']:g}, {by_anchors}"
            f"{self.tokens['count']} safety tokens ({self.tokens['digest']}), reference {self.reference}"
        )

    def add_step(self, step: int) -> None:
        """Note that optimiser step `step` is constrained; micro-batches of one step count once."""
        self.total_steps = max(self.total_steps, step)
        if self.steps and self.steps[-1][0] <= step <= self.steps[-1][1]:
            return
        if self.steps and step == self.steps[-1][1] + 1:
            self.steps[-1][1] = step
        else:
            self.steps.append([step, step])
            self.steps.sort()

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

    def resume(self, earlier: Receipt) -> None:
        """Continue the counts of the run that a checkpoint belongs to.

        Where its safety tokens and its store lie may differ (a file has moved, or they are read from the checkpoint),
        not what they are; nor does it matter how the kind of reference was asked for.

        Raises:
            ReceiptError: That run was constrained by other settings, tokens or another reference.
        """
        whole = [
            (name, getattr(self, name), getattr(earlier, name)) for name in ("tokens", "reference", "store")
        ]
        for name, ours, theirs in [*differing(self.config, earlier.config), *whole]:
            if ours != theirs:
                raise ReceiptError(
                    f"the checkpoint was constrained differently: {name} was {theirs!r}",
                    key=name,
                    value=ours,
                    remedy=f"Set `reference: {theirs}` to resume, or start a new run."
                    if name == "reference"
                    else "Resume with the settings of the run, or start a new run.",
                )
        self.steps = [list(span) for span in earlier.steps]
        self.total_steps = earlier.total_steps
        for name in ("positions", "divergence", "anchor_divergence", "trained_tokens"):
            setattr(self, name, getattr(earlier, name))

    def write(self, directory: str | Path) -> Path:
        """Write `pact_receipt.json` into a directory; never half of it."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self) | {name: getattr(self, name) for name in _DERIVED}
        text = json.dumps(content, indent=2, sort_keys=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=FILE_NAME)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, folder / FILE_NAME)
        return folder / FILE_NAME

    @classmethod
    def read(cls, directory: str | Path) -> Receipt:
        """Read the receipt of an output or checkpoint directory, or the file itself.

        Raises:
            ReceiptError: It is missing or unreadable.
        """
        path = Path(directory)
        path = path / FILE_NAME if path.is_dir() or path.suffix != ".json" else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            receipt = cls(**{name: value for name, value in content.items() if name not in _DERIVED})
        except FileNotFoundError as error:
            raise ReceiptError(
                "no receipt: nothing shows that this run was constrained",
                key="output",
                value=str(directory),
                remedy="Train with the constraint attached, or point to the run's output directory.",
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
            raise _unreadable(path) from error
        if receipt.version != _VERSION or not _well_formed(receipt):
            raise _unreadable(path)
        return receipt


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that must be the same for a run to go on."""
    kept = {k: v for k, v in config.items() if k not in ("safety_tokens", "store") and v is not None}
    if not kept.get("anchors"):  # also of a run that was begun before there were any
        kept = {k: v for k, v in kept.items() if k not in _OF_ANCHORS}
    if kept.get("anchor_tokens") == 16:  # as it was before there was a choice
        del kept["anchor_tokens"]
    if kept.get("anchor_ratio") == 1:  # as it was before there was a choice
        del kept["anchor_ratio"]
    if kept.get("hold") == "all":  # as it was before there was a choice
        del kept["hold"]
    kept.setdefault("first_n", "all")  # as it was unless set
    if kept.get("reference") in OWN_REFERENCES:
        del kept["reference"]
    return kept


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that keep a run from going on where another stopped: key, value here and value there."""
    ours, theirs = comparable(ours), comparable(theirs)
    return [
        (key, ours.get(key), theirs.get(key))
        for key in sorted(ours | theirs)
        if ours.get(key) != theirs.get(key)
    ]


def _well_formed(receipt: Receipt) -> bool:
    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    return (
        isinstance(receipt.steps, list)
        and all(
            isinstance(s, list) and len(s) == 2 and all(map(is_count, s)) and s[0] <= s[1]
            for s in receipt.steps
        )
        and is_count(receipt.total_steps)
        and is_count(receipt.positions)
        and is_count(receipt.anchor_prompts)
        and is_count(receipt.trained_tokens)
        and isinstance(receipt.divergence, float | int)
        and isinstance(receipt.anchor_divergence, float | int)
    )


def _unreadable(path: Path) -> ReceiptError:
    return ReceiptError(
        "the receipt cannot be read",
        key="receipt",
        value=str(path),
        remedy="It is damaged or of another version of pact-plugin; the run cannot be verified from it.",
    )
