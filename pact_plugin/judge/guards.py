"""Guard models as judges. This module imports no framework; whoever loads a model hands it over.

`find_judge` loads guards by path or hub id where pact-plugin's transformers integration is installed. `guard_formats`
says what each kind of guard can judge.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pact_plugin.errors import JudgeError
from pact_plugin.judge.guard_formats import Guard
from pact_plugin.judge.text import says_nothing
from pact_plugin.judge.verdicts import Judgement

logger = logging.getLogger("pact_plugin")

_BATCH = 8
"""Conversations at a time."""


class GuardJudge:
    """A guard model as a judge, on one conversation at a time.

    Args:
        guard: Its format.
        model: The loaded guard: a causal language model with transformers' `generate`.
        tokenizer: Its tokenizer.
        name: What errors call it; by default that of the format.
    """

    def __init__(self, guard: Guard, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        self.name, self.tells_harm = name or guard.name, guard.harm
        self._guard, self._model, self._tokenizer = guard, model, tokenizer

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """See `Judge`. What cannot be read has no verdict, and is counted in a warning that shows one.

        Raises:
            JudgeError: Nothing that the guard wrote can be read, or its tokenizer has no fitting chat template.
        """
        pairs = list(zip(prompts, answers, strict=True))
        asked = [place for place, (_, answer) in enumerate(pairs) if not says_nothing(answer)]
        written = dict(zip(asked, self._written([pairs[place] for place in asked]), strict=True))
        found = [
            Judgement(self._guard.read(written[place]), written=written[place])
            if place in written
            else Judgement("neither")
            for place in range(len(pairs))
        ]
        self._check(found, len(asked))
        return found

    def _written(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        if not pairs:
            return []
        # torch, which judges without a guard do not need
        from pact_plugin.data.generation import Generation, answers, inspecting

        rows = [
            list(
                self._tokenizer(
                    self._guard.question(self._tokenizer, *pair), add_special_tokens=self._guard.special
                )["input_ids"]
            )
            for pair in pairs
        ]
        with inspecting(self._model):
            found = answers(self._model, self._tokenizer, rows, Generation(self._guard.tokens, _BATCH))
        return [self._tokenizer.decode(ids) for ids in found]

    def _check(self, found: Sequence[Judgement], asked: int) -> None:
        unread = [judgement.written for judgement in found if judgement.verdict is None]
        if not unread:
            return
        problem = f"{len(unread)} of {asked} verdicts of the guard cannot be read, such as {unread[0]!r}"
        if len(unread) == asked:
            remedy = f"Name a guard model that answers in the format {self._guard.name!r}."
            raise JudgeError(problem, key="judge", value=self.name, remedy=remedy)
        logger.warning("PACT: %s; they count as no verdict, not as safe", problem)
