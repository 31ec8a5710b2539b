"""Where the aligned model's predictions come from: one choice, over facts that can be known without a model."""

from __future__ import annotations

from dataclasses import dataclass

from pact_plugin.reference.source import AdapterState, SourceKind, sharded_copy

STORE = "_pact_store"
"""A table's folder in a trainer's output folder, where the configuration names none. Transformers pushes nothing to the
hub whose name begins with an underscore."""


ANSWERS = "answers"
"""In it: what the aligned model was asked once, so that a run can go on where its cache is not."""


@dataclass(frozen=True)
class RunFacts:
    """What a trainer, or its configuration, says of a run: what allows a table of predictions, or a copy of the model.

    Args:
        folder: Where a table and answers can lie; None where nobody has named a place.
        obstacle: Why the data cannot be read before training, such as "the training data has no length".
        sharded: The setting that spreads the parameters over the ranks, such as `fsdp`.
    """

    folder: str | None = None
    obstacle: str | None = None
    sharded: str | None = None


@dataclass(frozen=True)
class Choice:
    """Where predictions come from.

    Args:
        source: What computes them (see `Source`).
        table: Folder of the table that predictions are written to before the first step, so that no step runs the
            source; None where each step does.
        asked: Whether any term asks for columns; else the aligned model is only needed when the run begins.
    """

    source: SourceKind
    table: str | None
    asked: bool = True

    @property
    def name(self) -> str:
        """For logs and receipts: `table`, `adapter_off`, `copy`, `model`, or `start` where only its start is asked."""
        if not self.asked:
            return "start"
        return "table" if self.table is not None else self.source

    @property
    def lasting(self) -> bool:
        """Whether the source is the aligned model after the first training step, too, and still at hand.

        Another model is let go of once a table has what it says.
        """
        if self.source == "model":
            return self.asked and self.table is None
        return self.source != "itself"


def choose(*, named: bool, adapter: AdapterState, run: RunFacts, asked: bool = True) -> Choice:
    """The reference of a run.

    Text data of known length is read once before training, whatever the number of epochs, and no step runs a reference.
    Otherwise each step runs the model that is named, or the one in training with its new adapter switched off, or with
    a frozen copy of the parameters in training.

    Args:
        named: Whether the configuration names the aligned model.
        adapter: Of the model in training (see `adapter_state`).
        run: What is known of the run.
        asked: Whether any term asks for columns; else the aligned model is only needed when the run begins.

    Raises:
        ReferenceModelError: A copy of the parameters would be needed where these are sharded: FSDP would put those in
            training back in place of the copy, and the model would be compared with itself.
    """
    table = run.folder if asked and run.obstacle is None else None
    if named:
        return Choice("model", table, asked)
    if adapter == "new":
        return Choice("adapter_off", table, asked)
    if table is not None or not asked:
        return Choice("itself", table, asked)
    if run.sharded is not None:
        why = run.obstacle or "no folder is named for a table of predictions"
        raise sharded_copy(run.sharded, why, obstacle=run.obstacle is not None)
    return Choice("copy", None, asked)
