"""What becomes of the data's harmful items, whatever the method: `METHOD+TREATMENT`.

- *dropping*: items whose prompt the aligned model refuses, by the default judge, and whose own answer is no refusal,
  are left out. A baseline of ours, and not any paper's.
- *easing*: the first 16 response tokens of the same items weigh 1 - e in the cross-entropy with e = 1, over the
  unchanged denominator (clause C2.6 with a judge in place of the probe).
- *probe*: easing as PACT's own: of items whose prompt the probe takes for harmful, and whose answer does not refuse.
- *oracle*: easing of the items that are known to be harmful. An upper bound, and no method: nobody has the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.field.data import Item
from benchmarks.field.methods.base import Trainee
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.generation import inspecting
from pact_plugin.judge import is_refusal
from pact_plugin.reference.pool import end_states

TREATMENTS = ("none", "dropping", "easing", "probe", "oracle")
TITLES = {
    "none": "",
    "dropping": ", refused items dropped",
    "easing": ", refused items eased",
    "probe": ", eased as PACT does",
    "oracle": ", harmful items known and eased (no method)",
}


LEFT_OUT = None
"""In place of the easing of an item that is not trained on."""


def treated(items: Sequence[Item], treatment: str, trainee: Trainee) -> list[float | None]:
    """The easing e of each item, `LEFT_OUT` where it is dropped."""
    if treatment == "none":
        return [0.0] * len(items)
    if treatment == "oracle":
        return [float(item.harmful) for item in items]
    prompts = [item.prompt for item in items]
    refused = seen_harmful(prompts, trainee) if treatment == "probe" else trainee.refused(prompts)
    chosen = [one and not is_refusal(item.answer) for one, item in zip(refused, items, strict=True)]
    return [(LEFT_OUT if treatment == "dropping" else 1.0) if one else 0.0 for one in chosen]


def seen_harmful(prompts: Sequence[str], trainee: Trainee) -> list[bool]:
    """Which prompts the aligned model sees as harmful: log odds above 0 by the probe of the pool."""
    start, probe = trainee.start, trainee.asked().probe
    with inspecting(start.model), start.source.session():
        states = end_states(start.source, user_prompts(start.tokenizer, prompts))
    found: list[bool] = (probe.log_odds(states) > 0).tolist()
    return found
