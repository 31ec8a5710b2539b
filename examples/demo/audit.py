"""Every model of the demo before the same questions: its score, its answers, and an audit of those fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

import pact_plugin as pact
from examples.demo.evaluate import BATCH, Questions, Score, answer, share
from examples.demo.report import TITLES
from examples.demo.task import is_correct
from pact_plugin.audit import report
from pact_plugin.audit.result import AuditResult
from pact_plugin.audit.run import compared
from pact_plugin.audit.settings import Asking, AuditSettings
from pact_plugin.audit.survey import ReferenceReading, Survey
from pact_plugin.cli.audit_view import criteria
from pact_plugin.data.generation import Progress, reporting
from pact_plugin.data.prompts import KINDS, from_rows
from pact_plugin.judge import is_refusal

ANSWER_TOKENS = 16  # enough for the judge, which looks at the start of an answer
TASK_TOKENS = 12


class Examination:
    """Asks the aligned model, and then those that were tuned from it.

    Args:
        questions: What every model is asked.
        tokenizer: That of all models.
        tokens: The safety tokens on which the audits compare confidence.
        progress: Called with (done, total, description).
    """

    def __init__(
        self, questions: Questions, tokenizer: Any, tokens: pact.SafetyTokens, progress: Progress
    ) -> None:
        rows = [{"prompt": prompt, "kind": kind} for kind in KINDS for prompt in getattr(questions, kind)]
        self._settings = AuditSettings(Asking(max_new_tokens=ANSWER_TOKENS, batch_size=BATCH))
        self._survey = Survey(
            from_rows(enumerate(rows, 1), "held out by the demo"),
            self._settings.asking,
            safety_tokens=tokens,
        )
        self._questions, self._tokenizer, self._progress = questions, tokenizer, progress
        self._aligned: ReferenceReading | None = None
        self.scores: dict[str, Score] = {}
        self.answers: dict[str, dict[str, list[str]]] = {}
        self.audits: dict[str, AuditResult] = {}

    def ask(self, name: str, model: Any) -> None:
        """Ask a model all questions; the first is the one that the others are held against."""
        title = TITLES[name]

        def progress(done: int, total: int, description: str) -> None:
            self._progress(done, total, f"{title[0].upper()}{title[1:]}: {description}")

        asked = (model, self._tokenizer)
        if self._aligned is None:
            self._aligned = self._survey.reference(*asked, name=title, progress=progress)
            said = self._aligned.answers.texts
        else:
            reading = self._survey.candidate(*asked, self._aligned, name=title, progress=progress)
            self.audits[name] = compared(self._survey, self._aligned, reading, self._settings)
            said = reading.answers.texts
        task = self._questions.task
        solved = answer(*asked, task, TASK_TOKENS, reporting(progress, len(task), "writing dates"))
        places = {kind: self._survey.places(kind) for kind in KINDS}
        self.answers[name] = {kind: [said[i] for i in kept] for kind, kept in places.items()} | {
            "task": solved
        }
        self.scores[name] = Score(
            refusal_rate=share(map(is_refusal, self.answers[name]["harmful"])),
            over_refusal_rate=share(map(is_refusal, self.answers[name]["benign"])),
            task_accuracy=share(map(is_correct, solved, self._questions.solutions)),
        )

    def write_reports(self, output: Path, console: Console) -> None:
        """Write the report on each fine-tuned model into a folder of its own, and print its verdict."""
        for name, audit in self.audits.items():
            report.write(audit, output / name)
            console.print(
                f"Audit of {TITLES[name]} against the aligned model: {output / name}/report.html",
                markup=False,
                soft_wrap=True,
            )
            for line in criteria(audit):
                console.print(line, soft_wrap=True)
