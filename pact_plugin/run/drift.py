"""How far a constrained run's model has moved, by what it measured itself: a sign, no audit."""

from __future__ import annotations

from pact_plugin.run.receipt import Receipt

FAR = 0.1
"""Nats a token at the anchors, over a run, with the likeliest tokens of each position held as well. On a model that
came aligned (benchmarks/field/README.md) runs that kept its refusals moved by 0.027; plain fine-tuning, which lost
them, ended at 0.23, over a third of the anchors."""
FAR_ALONE = 0.01
"""The same of safety tokens alone (`anchors.top_k: 0`). With four tokens each, of 46 runs in
benchmarks/preservation/README.md 38 moved by 0.002 to 0.007; the others by 0.012 and more, and at other prompts two to
eight times as far as any of the 38."""


def drift_warning(receipt: Receipt) -> str | None:
    """What to say of a run whose model has moved far from the aligned one at the anchors; None if it has not.

    Args:
        receipt: Of the run, or of what there is of it so far.
    """
    moved = receipt.mean("anchor_divergence")
    anchors = receipt.config.get("anchors") or {}
    far = FAR if anchors.get("top_k") else FAR_ALONE
    if moved is None or moved <= far:
        return None
    return (
        f"at the anchors the model has moved {moved:.3g} nats a token from the aligned one, more than {far:g}: "
        "what it refuses may have changed. Lower the learning rate, or set `anchors: {per_step: 32, ratio: 2}`; "
        "`pact-plugin audit` says what is left."
    )
