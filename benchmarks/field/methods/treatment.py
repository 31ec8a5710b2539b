"""What becomes of the data's harmful items, whatever the method: `METHOD+TREATMENT`.

- *dropping*: items whose prompt the aligned model refuses, by the default judge, and whose own answer is no refusal,
  are left out. A baseline of ours, and not any paper's.
- *easing*: the first 16 response tokens of the same items weigh 1 - e in the cross-entropy with e = 1, over the
  unchanged denominator (clause C2.6 with a judge in place of P(S)).
- *oracle*: easing of the items that are known to be harmful. An upper bound, and no method: nobody has the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.field.data import Item
from benchmarks.field.start import Start
from pact_plugin.judge import is_refusal

TREATMENTS = ("none", "dropping", "easing", "oracle")
TITLES = {
    "none": "",
    "dropping": ", refused items dropped",
    "easing": ", refused items eased",
    "oracle": ", harmful items known and eased (no method)",
}


LEFT_OUT = None
"""In place of the easing of an item that is not trained on."""


def treated(items: Sequence[Item], treatment: str, start: Start) -> tuple[list[float | None], float]:
    """The easing e of each item, `LEFT_OUT` where it is dropped; and the seconds that finding that out takes."""
    if treatment == "none":
        return [0.0] * len(items), 0.0
    if treatment == "oracle":
        return [float(item.harmful) for item in items], 0.0
    said, seconds = start.kept_answers([item.prompt for item in items])
    refused = [is_refusal(said[item.prompt]) and not is_refusal(item.answer) for item in items]
    return [(1.0 if treatment == "easing" else LEFT_OUT) if one else 0.0 for one in refused], seconds
