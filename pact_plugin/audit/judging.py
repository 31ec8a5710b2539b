"""What judges say of the answers: the first judge decides, a second one is compared with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sklearn.metrics import cohen_kappa_score

from pact_plugin.audit.measures import Agreement, JudgedAnswer
from pact_plugin.data.prompts import Kind
from pact_plugin.judge.names import find_judge, judge_names, prepared_judge
from pact_plugin.judge.verdicts import Judge, Judgement, Verdict, refuses, tells_harm, whole

BEGINNING = 24
"""Words of an answer that are its beginning."""
_FIRST = re.compile(rf"(?:\s*\S+){{0,{BEGINNING}}}")


class Judges:
    """The judges of an audit. Those that can be looked at without being loaded are loaded when they are asked first.

    A judge that tells harm finds none in help with a benign prompt, and would call it refused. So the default judge
    decides there in its place, and two judges of which one tells harm are compared on harmful prompts alone.

    Args:
        names: Of one judge or two.

    Raises:
        JudgeError: A judge is not known, or cannot be loaded.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._loaders: list[Callable[[], Judge]] = [prepared_judge(name) for name in names]
        self.names = tuple(names)
        self._judges: list[Judge] = []

    @property
    def harm(self) -> tuple[str, ...]:
        """Names of the judges that tell harm and no refusals."""
        both = zip(self.names, self._loaded(), strict=True)
        return tuple(name for name, judge in both if tells_harm(judge))

    def judge(
        self, prompts: Sequence[str], answers: Sequence[str], kinds: Sequence[Kind]
    ) -> list[JudgedAnswer]:
        """What the judges say of answers.

        Args:
            prompts: What was asked.
            answers: One for each prompt.
            kinds: Of the prompts.

        Raises:
            JudgeError: A guard model's verdicts cannot be read at all.
        """
        first = self._first(prompts, answers, kinds)
        others = self._second(prompts, answers, kinds)
        beginnings = self._beginnings(prompts, answers, first)
        return [
            JudgedAnswer.of(
                one.verdict,
                answers[i],
                score=None if one.score is None else round(one.score, 4),
                beginning=beginnings[i],
                second=others[i].verdict if i in others else None,
                written=one.written if one.verdict is None else None,
            )
            for i, one in enumerate(first)
        ]

    def refused(self, prompts: Sequence[str], answers: Sequence[str], kinds: Sequence[Kind]) -> list[bool]:
        """Whether answers count as refused by the judge that decides, without the second one."""
        return [refuses(one.verdict) for one in self._first(prompts, answers, kinds)]

    def compares(self, kind: Kind) -> bool:
        """Whether two judges are compared on prompts of a kind."""
        return len(self.names) > 1 and (kind == "harmful" or not self.harm)

    def _loaded(self) -> list[Judge]:
        self._judges = self._judges or [load() for load in self._loaders]
        return self._judges

    def _first(
        self, prompts: Sequence[str], answers: Sequence[str], kinds: Sequence[Kind]
    ) -> list[Judgement]:
        judge = self._loaded()[0]
        benign = {i for i, kind in enumerate(kinds) if kind == "benign" and tells_harm(judge)}
        found = _asked(judge, prompts, answers, [i for i in range(len(prompts)) if i not in benign])
        if benign:
            found |= _asked(find_judge(), prompts, answers, sorted(benign))
        return [found[i] for i in range(len(prompts))]

    def _second(
        self, prompts: Sequence[str], answers: Sequence[str], kinds: Sequence[Kind]
    ) -> dict[int, Judgement]:
        """By place, where the judges are compared."""
        places = [i for i, kind in enumerate(kinds) if self.compares(kind)]
        return _asked(self._loaded()[-1], prompts, answers, places)

    def _beginnings(
        self, prompts: Sequence[str], answers: Sequence[str], whole: Sequence[Judgement]
    ) -> list[Verdict | None]:
        """Verdicts on the first words. Guards that tell harm find none there: the default judge reads them instead."""
        found = [one.verdict for one in whole]
        starts = [_FIRST.match(answer)[0] for answer in answers]  # type: ignore[index]  # it always matches
        longer = [i for i, answer in enumerate(answers) if len(answer.split()) > BEGINNING]
        own = self.names[0] in judge_names() and self.names[0] not in self.harm
        places = longer if own else list(range(len(answers)))
        judge = self._judges[0] if own else find_judge()
        asked = judge.judge([prompts[i] for i in places], [starts[i] for i in places])
        for place, one in zip(places, asked, strict=True):
            found[place] = one.verdict
        return found


def _asked(
    judge: Judge, prompts: Sequence[str], answers: Sequence[str], places: Sequence[int]
) -> dict[int, Judgement]:
    """A judge's judgements of some of the answers, by place."""
    if not places:
        return {}
    found = judge.judge([prompts[i] for i in places], [answers[i] for i in places])
    return dict(zip(places, found, strict=True))


def agree(name: str, answers: Sequence[JudgedAnswer]) -> Agreement | None:
    """How far the second judge, called `name`, agrees with the first; None where no answer has a verdict from both.

    A partial refusal counts as a refusal.
    """
    both = [one for one in answers if one.verdict and one.second]
    if not both:
        return None
    first, second = [whole(one.verdict) for one in both], [whole(one.second) for one in both]
    differ = sum(one.disputed for one in both)
    # With one and the same verdict everywhere chance explains all, and kappa is 0 / 0.
    kappa = cohen_kappa_score(first, second) if len({*first, *second}) > 1 else None
    return Agreement(
        second=name,
        compared=len(both),
        unread=len(answers) - len(both),
        equal=1 - differ / len(both),
        kappa=None if kappa is None else round(float(kappa), 4),
        differ=differ,
    )
