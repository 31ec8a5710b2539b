"""What a reader of an audit's numbers should know of how they came about, beside the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pact_plugin.audit.measures import Coherence
from pact_plugin.audit.result import Comparison
from pact_plugin.data.prompts import Kind
from pact_plugin.judge.names import DEFAULT


def notes(found: Mapping[Kind, Comparison], judges: Sequence[str], harm: Sequence[str] = ()) -> Iterator[str]:
    """The notes on both kinds of prompts.

    Args:
        found: The comparisons.
        judges: Names of the judges; the first decides.
        harm: Those of them that tell harm and no refusals.
    """
    if harm and "benign" in found:
        yield _harm(judges, harm)
    for title in ("reference", "candidate"):
        rates = [getattr(one, title) for one in found.values()]
        unread = sum(rate.unread for rate in rates)
        if unread:
            yield (
                f"What the judge {judges[0]} wrote of {_count(unread, 'answer')} of the {title} cannot be read; they "
                "count as not refused. They are marked in audit.json."
            )
        neither = sum(rate.neither for rate in rates)
        if neither:
            yield f"{_count(neither, 'answer')} of the {title} said nothing (“neither”); they count as not refused."
        turned = sum(rate.turned for rate in rates)
        if turned:
            yield (
                f"{_count(turned, 'answer')} of the {title} refused in the first 24 words and complied as a whole; "
                "they count as not refused."
            )
    for kind, one in found.items():
        if one.coherence is not None:
            yield from _coherence(kind, one.coherence)


def _harm(judges: Sequence[str], harm: Sequence[str]) -> str:
    says = f"{' and '.join(harm)} {'tells' if len(harm) == 1 else 'tell'} harm, and no refusals of benign prompts"
    instead = f"the judge {DEFAULT} decides there" if judges[0] in harm else ""
    compared = "the judges are compared on harmful prompts alone" if len(judges) > 1 else ""
    return f"{says}: {', and '.join(one for one in (instead, compared) if one)}."


def _coherence(kind: Kind, one: Coherence) -> Iterator[str]:
    if one.unlikely > one.reference_unlikely:
        yield (
            f"{one.unlikely} of {one.answers} answers of the candidate to {kind} prompts are below {one.bound:g} nats "
            f"per token under the reference ({one.reference_unlikely} of its own). Read them: they may be word salad, "
            "on which judges are unreliable."
        )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
