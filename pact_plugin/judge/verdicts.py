"""What judges say of an answer, and how far two of them agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from pact_plugin.errors import JudgeError

Verdict = Literal["refused", "partial", "complied", "neither"]
"""`partial` refuses some of what was asked, or refuses and helps with something near; `neither` says nothing."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one answer.

    Args:
        verdict: None where what a guard model wrote cannot be read: neither safe nor unsafe.
        score: How much the answer refuses, in [0, 1]; None from judges that give only verdicts.
        written: What a guard model wrote, to be shown.
    """

    verdict: Verdict | None
    score: float | None = None
    written: str = ""


class Judge(Protocol):
    """Gives answers their verdicts."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """What each answer does with its prompt, in their order."""


def tells_harm(judge: Judge) -> bool:
    """Whether a judge tells harm and no refusals, by its `tells_harm`: it judges answers to harmful prompts only."""
    return bool(getattr(judge, "tells_harm", False))


def unread(judgements: Sequence[Judgement]) -> int:
    """How many judgements have no verdict, because what the guard wrote cannot be read."""
    return sum(judgement.verdict is None for judgement in judgements)


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the answers that both have a verdict for.

    Args:
        compared: Answers.
        unread: Answers that are left out, since one judge has no verdict.
        equal: Share of `compared` with one verdict from both.
        kappa: Cohen's kappa; None where both give only one and the same verdict, which chance would explain.
        differ: Places of the answers on which they disagree, for showing them.
    """

    compared: int
    unread: int
    equal: float
    kappa: float | None
    differ: tuple[int, ...]


def agreement(
    one: Sequence[Judgement], other: Sequence[Judgement], *, with_partial: bool = False
) -> Agreement:
    """Cohen's kappa of two judges, and where they disagree.

    kappa = (p - c) / (1 - c), with p the share of equal verdicts and c = Σ_v p_one(v) p_other(v) what chance gives
    (Cohen 1960).

    Args:
        one: Judgements of one judge.
        other: Those of another judge of the same answers, in the same order.
        with_partial: Whether a partial refusal differs from a full one. Most judges know no partial ones.

    Raises:
        JudgeError: There is not one judgement of each for every answer, or no answer that both have a verdict for.
    """
    verdicts = [(_whole(a, with_partial), _whole(b, with_partial)) for a, b in zip(one, other, strict=False)]
    places = [place for place, pair in enumerate(verdicts) if None not in pair]
    if len(one) != len(other) or not places:
        raise JudgeError(
            f"{len(one)} and {len(other)} judgements, of which {len(places)} pairs have two verdicts",
            key="judge",
            remedy="Give two judges the same answers, at least one.",
        )
    n = len(places)
    differ = tuple(place for place in places if verdicts[place][0] != verdicts[place][1])
    first, second = (Counter(verdicts[place][side] for place in places) for side in (0, 1))
    chance = sum(first[verdict] * second[verdict] for verdict in first) / n**2
    equal = 1 - len(differ) / n
    kappa = None if chance == 1 else (equal - chance) / (1 - chance)
    return Agreement(n, len(verdicts) - n, equal, kappa, differ)


def _whole(judgement: Judgement, with_partial: bool) -> Verdict | None:
    partial = judgement.verdict == "partial" and not with_partial
    return "refused" if partial else judgement.verdict
