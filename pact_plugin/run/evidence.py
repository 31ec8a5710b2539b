"""What a receipt in a folder says of the model there, beside what a Hugging Face trainer has left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pact_plugin.errors import ReceiptError, ReferenceModelError
from pact_plugin.run.receipt import FILE_NAME, Receipt

_STATE = "trainer_state.json"
_LOGS = 2
"""One log may lack `pact/*` because its rows had no answer; two in a row hardly do."""


@dataclass(frozen=True)
class SavedState:
    """What a trainer knew when it saved.

    Args:
        path: Its file.
        steps: Optimiser steps that it counted.
        unconstrained: Whether its last logs of training hold no `pact/*`.
    """

    path: Path
    steps: int
    unconstrained: bool

    @classmethod
    def read(cls, folder: Path) -> SavedState | None:
        """That of an output or checkpoint folder; None where a trainer has left none.

        Raises:
            ReceiptError: It is damaged.
        """
        path = folder / _STATE
        if not path.is_file():
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            logs = [set(entry) for entry in state.get("log_history", []) if "loss" in entry]
            steps = int(state["global_step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReceiptError(
                "the trainer's state cannot be read", key=_STATE, value=str(path), remedy="It is damaged."
            ) from error
        measured = any(name.startswith("pact/") for log in logs[-_LOGS:] for name in log)
        return cls(path, steps, unconstrained=bool(logs) and not measured)

    def outlives(self, folder: Path, covered: int) -> bool:
        """Whether the receipt in a folder is an earlier run's: the trainer has gone over its steps without PACT.

        Args:
            folder: This state's, or the one above.
            covered: Optimiser steps that the receipt counts.
        """
        newer = self.path.stat().st_mtime > (folder / FILE_NAME).stat().st_mtime
        again = self.steps >= covered and self.path.with_name(FILE_NAME).is_file()
        return self.unconstrained and (newer or again)


def resumable(checkpoint: str | Path, *, key: str = "checkpoint", anew: str = "begin a new run") -> Receipt:
    """The receipt of a checkpoint that a run may go on from.

    Args:
        checkpoint: Its folder.
        key: What an error names.
        anew: How not to go on from it, in an error's remedy.

    Raises:
        ReceiptError: There is none, or it is an earlier run's.
    """
    folder = Path(checkpoint)
    try:
        receipt = Receipt.read(folder)
        state = SavedState.read(folder) if folder.is_dir() else None
        if state is not None and state.outlives(folder, receipt.total_steps):
            raise earlier_run(folder, state)
    except ReceiptError as error:
        remedy = f"Resume from a checkpoint of a constrained run, or {anew}."
        raise ReceiptError(error.problem, key=key, value=str(checkpoint), remedy=remedy) from error
    return receipt


def fine_tuned(key: str, name: str) -> ReferenceModelError | None:
    """That a constrained run has trained what a run would start from and take for the aligned model.

    Args:
        key: What names it.
        name: Path or hub id of a model or an adapter.
    """
    if not (Path(name) / FILE_NAME).is_file():
        return None
    return ReferenceModelError(
        "a run of PACT has trained it, so it is not the aligned model",
        key=key,
        value=name,
        remedy=f"Name the model before that run as `reference`, or `reference: {name}` to keep what this one refuses.",
    )


def earlier_run(folder: Path, state: SavedState) -> ReceiptError:
    """That a receipt is not of the model beside it."""
    return ReceiptError(
        f"the receipt is an earlier run's: the last logs in {state.path} hold no `pact/*`",
        key="output",
        value=str(folder),
        remedy="Train again with the constraint attached.",
    )
