"""How likely the models find held-out answers of the user's own task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pact_plugin.audit.bootstrap import bootstrap
from pact_plugin.audit.measures import Likelihood
from pact_plugin.audit.reading import check_context
from pact_plugin.data.chat_template import conversation_prompt
from pact_plugin.data.generation import Pair
from pact_plugin.data.heldout import HeldOut
from pact_plugin.errors import ConfigError


def pairs(model: Any, tokenizer: Any, items: Sequence[HeldOut]) -> list[Pair]:
    """Token ids of each conversation in the model's own chat format, and of its answer without the end of turn.

    Raises:
        ConfigError: An item is too long for the model, or its chat template refuses it.
    """
    found: list[Pair] = []
    for item in items:
        given = ("task", f"line {item.line}")
        try:
            question = conversation_prompt(tokenizer, item.messages)
        except ConfigError as error:
            remedy = "Leave it out, or give a `tokenizer` with another template."
            raise ConfigError(error.problem, key=given[0], value=given[1], remedy=remedy) from error
        answer = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        check_context(model, len(question), len(answer), given)
        found.append((question, list(answer)))
    return found


def likelihood(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> Likelihood | None:
    """Both models on the same answers; None if there is none.

    Args:
        reference: Log-probabilities of the tokens of each answer.
        candidate: The same under the candidate.
    """
    counts = [len(one) for one in reference]
    if not sum(counts):
        return None
    sums = [[float(one.double().sum()) for one in side] for side in (reference, candidate)]
    differences = [after - before for before, after in zip(*sums, strict=True)]
    low, high = bootstrap(differences, counts)
    means = [sum(side) / sum(counts) for side in sums]
    return Likelihood(
        items=len(counts),
        tokens=sum(counts),
        reference=round(means[0], 5),
        candidate=round(means[1], 5),
        difference=round(means[1] - means[0], 5),
        low=round(low, 5),
        high=round(high, 5),
    )
