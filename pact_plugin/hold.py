"""Whether a constrained run held what it constrains, by what it measured itself: a sign, no audit."""

from __future__ import annotations

from pact_plugin.receipt import Receipt

LOOSE = 0.01
"""Nats a token at the anchors, over a run, with `anchor_tokens` as by default. Runs that kept every refusal moved by
0.004 to 0.006, those that lost some by 0.022 and more (benchmarks/preservation/README.md)."""


def loose_hold(receipt: Receipt) -> str | None:
    """What to say of a run whose model has moved far from the aligned one at the anchors; None if it has not.

    Args:
        receipt: Of the run, or of what there is of it so far.
    """
    moved = receipt.mean_anchor_divergence
    if moved is None or moved <= LOOSE or not receipt.config.get("weight"):
        return None
    return (
        f"at the anchors the model has moved {moved:.3g} nats a token from the aligned one, more than {LOOSE:g}: "
        "runs that moved so far have lost refusals. Lower the learning rate, or set `anchors: 32` and "
        "`anchor_ratio: 2`; `pact-plugin audit` says what is left."
    )
