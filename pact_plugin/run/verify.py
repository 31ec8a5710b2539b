"""Was a run really constrained? The answer of `pact-plugin verify`."""

from __future__ import annotations

import json
from pathlib import Path

from pact_plugin.errors import ReceiptError
from pact_plugin.run.receipt import FILE_NAME, Receipt

_TRAINER_STATE = "trainer_state.json"
_CHECKPOINTS = "checkpoint-*"


def verify_run(directory: str | Path) -> str:
    """One line that says over how many steps and tokens a run was constrained, and by which tokens.

    Args:
        directory: The output directory of a run, or one of its checkpoints.

    Raises:
        ReceiptError: There is no receipt, no token was trained on, or steps are missing (they are named).
    """
    folder = Path(directory)
    receipt = Receipt.read(folder)
    covered = receipt.total_steps
    states = {folder / _TRAINER_STATE: _trainer_steps(folder), **_unconstrained_steps(folder)}
    furthest = max(states, key=lambda place: states[place])
    receipt.total_steps = max(covered, states[furthest])
    if receipt.config.get("weight") == 0:
        raise ReceiptError(
            "the run was measured, not constrained",
            key="weight",
            value=0,
            remedy="Train with a weight above 0.",
        )
    if receipt.missing:
        raise ReceiptError(
            f"steps {receipt.missing} of {receipt.total_steps} were not constrained",
            key="steps",
            value=receipt.steps,
            remedy="Train those steps again with the constraint attached"
            + (f"; or remove {furthest}, if an earlier run left it." if states[furthest] > covered else "."),
        )
    if not receipt.trained_tokens:
        raise ReceiptError(
            "no token was trained on under the constraint",
            key="trained_tokens",
            value=receipt.trained_tokens,
            remedy=f"Train at least one step, and save the model through the trainer, which writes {FILE_NAME}.",
        )
    means = {name: receipt.mean(name) for name in sorted(receipt.sums) if name != "loss"}
    measured = "".join(f", {name} {mean:.4g}" for name, mean in means.items() if mean is not None)
    unmasked = "; NO TOKEN WAS MASKED in the first rows, so prompts counted as answers"
    counted = f"constrained: {receipt.constrained_steps} steps, {receipt.trained_tokens} tokens{measured}"
    return f"{counted}; {receipt}{unmasked if receipt.unmasked else ''}"


def _unconstrained_steps(folder: Path) -> dict[Path, int]:
    """Steps of each checkpoint inside that holds no receipt of them: the run went on without the constraint."""
    found = {}
    for checkpoint in folder.glob(_CHECKPOINTS):
        steps = _trainer_steps(checkpoint)
        covered = Receipt.read(checkpoint).total_steps if (checkpoint / FILE_NAME).is_file() else 0
        if steps > covered:
            found[checkpoint] = steps
    return found


def _trainer_steps(folder: Path) -> int:
    """Optimiser steps that the trainer itself counted, where it left its state; 0 otherwise."""
    state = folder / _TRAINER_STATE
    if not state.is_file():
        return 0
    try:
        return int(json.loads(state.read_text(encoding="utf-8"))["global_step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ReceiptError(
            "the trainer's state cannot be read",
            key=_TRAINER_STATE,
            value=str(state),
            remedy="It is damaged.",
        ) from error
