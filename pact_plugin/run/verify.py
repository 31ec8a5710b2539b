"""Was a run really constrained? The answer of `pact-plugin verify`."""

from __future__ import annotations

from pathlib import Path

from pact_plugin.errors import ReceiptError
from pact_plugin.run.evidence import SavedState, earlier_run
from pact_plugin.run.receipt import FILE_NAME, Receipt

_CHECKPOINTS = "checkpoint-*"


def verify_run(directory: str | Path) -> str:
    """One line that says over how many steps and tokens a run was constrained, and by which tokens.

    Args:
        directory: The output directory of a run, or one of its checkpoints.

    Raises:
        ReceiptError: There is no receipt, or an earlier run's; no token was trained on; or steps are missing (they are
            named).
    """
    folder = Path(directory)
    receipt, states = Receipt.read(folder), _states(folder)
    covered = receipt.total_steps
    # Beside these no receipt counts as many steps: the run went on without the constraint.
    further = [state for state in states if state.steps > max(covered, _covered(state))]
    furthest = max(further, key=lambda state: state.steps, default=None)
    if furthest is not None:
        receipt.total_steps = furthest.steps
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
            + (f"; or remove {_left(furthest, folder)}, if an earlier run left it." if furthest else "."),
        )
    for state in states:
        if state.outlives(folder, covered):
            raise earlier_run(folder, state)
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


def _states(folder: Path) -> list[SavedState]:
    """What the trainer left there, and in each checkpoint inside."""
    found = (SavedState.read(place) for place in (folder, *sorted(folder.glob(_CHECKPOINTS))))
    return [state for state in found if state is not None]


def _left(state: SavedState, folder: Path) -> Path:
    """What a run has left that is not the folder's own: a checkpoint, or the trainer's state alone."""
    return state.path if state.path.parent == folder else state.path.parent


def _covered(state: SavedState) -> int:
    """Steps that the receipt beside it counts; 0 where there is none."""
    beside = state.path.with_name(FILE_NAME)
    return Receipt.read(beside).total_steps if beside.is_file() else 0
