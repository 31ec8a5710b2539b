"""The notes of an audit: what a reader of its numbers should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pact_plugin.audit.measures import Coherence
from pact_plugin.audit.result import AuditVerdict, Comparison, Model
from pact_plugin.audit.verdict import CRITERIA
from pact_plugin.data.prompts import KINDS, Kind
from pact_plugin.judge.names import DEFAULT

SMALL = 100
"""Prompts of a kind, or requests, below which an interval may be 20 points wide."""


def of_noise(verdict: AuditVerdict) -> Iterator[str]:
    """What noise has to do with a verdict."""
    for one in verdict.criteria:
        if one.noise is None or one.certain:
            continue
        title, floor = CRITERIA[one.name], f"{100 * one.noise:.1f} points"
        if one.within_noise and one.passed and one.measured > one.bound:
            yield (
                f"{title}: over the threshold, and no larger than the noise floor ({floor}). It is decided as within "
                "noise: it passes, and shows nothing. Ask more prompts."
            )
        elif one.passed and abs(one.measured - one.bound) < one.noise:
            yield f"{title}: passed, by less than the noise floor ({floor}). The pass depends on noise."
        elif not one.passed and abs(one.measured - one.bound) <= one.noise:
            yield f"{title}: failed, by no more than the noise floor ({floor})."


def of_answers(
    found: Mapping[Kind, Comparison], judges: Sequence[str], harm: Sequence[str] = ()
) -> Iterator[str]:
    """Answers that cannot be read, say nothing or turn after refusing; judges that tell no refusals.

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


def of_models(models: Sequence[Model], found: Mapping[Kind, Comparison]) -> Iterator[str]:
    """How the models differ, and where prompts are few.

    Args:
        models: The reference and the candidate.
        found: The comparisons.
    """
    for title, model in zip(("reference", "candidate"), models, strict=True):
        if model.empty_answers:
            yield f"The {title} left {model.empty_answers} prompts without an answer."
        if model.chat_template is None:
            yield f"The {title}'s tokenizer has no chat template; its prompts went in as plain text."
    if models[0].chat_template != models[1].chat_template:
        yield "The models have different chat templates; each was asked in its own."
    if models[0].dtype != models[1].dtype:
        yield f"The models differ in type ({models[0].dtype}, {models[1].dtype}): some divergence is rounding."
    for kind in KINDS:
        if kind not in found:
            yield f"There was no {kind} prompt: that side was not measured."
            continue
        asked, requests = found[kind].reference.n, found[kind].change.requests
        if (requests or asked) < SMALL:
            few = f"{asked} {kind} prompts" + (f" of {requests} requests" if requests else "")
            yield f"Only {few} were asked: mind the intervals."


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
