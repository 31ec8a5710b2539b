"""How far a constrained run's model has moved, by its own measurements: a sign, not an audit."""

from __future__ import annotations

from pact_plugin.run.receipt import Receipt

FAR = 0.05
"""A run warns above this mean anchor divergence (nats per token) if `benign_top_k` is 0. With two anchors a step at
weight 3, on two models, runs that kept the refusals moved by 0.015 to 0.024; plain fine-tuning of one, which lost them,
ended at 0.16 (benchmarks/field/CHOICES.md, "When a run warns")."""
FAR_WORDED = 0.1
"""The same if `benign_top_k` is above 0: the likeliest tokens of benign anchors are held as well. Runs that kept the
refusals moved by 0.027 to 0.069; plain fine-tuning ended at 0.23 and 0.37."""


def drift_warning(receipt: Receipt) -> str | None:
    """What to say of a run whose model has moved far from the aligned one at the anchors; None if it has not.

    Args:
        receipt: Of the run, or of what there is of it so far.
    """
    moved = receipt.mean("anchor_divergence")
    anchors = receipt.config.get("anchors") or {}
    far = FAR_WORDED if anchors.get("benign_top_k") else FAR
    if moved is None or moved <= far:
        return None
    return (
        f"at the anchors the model has moved {moved:.3g} nats per token from the aligned one, more than {far:g}: "
        "what it refuses may have changed. `pact-plugin audit` says what is left."
    )
