"""Measures judges on models that they have not seen: one is left out, the weights are fitted on all else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.judge.data import OWN, Row
from benchmarks.judge.fitting import WORDS, fit, shortened
from benchmarks.tables import markdown
from pact_plugin.judge.classifier import THRESHOLD, Classifier
from pact_plugin.judge.keywords import declines
from pact_plugin.judge.text import beginning

FOLDS = 5
Score = Callable[[Row], float]
"""How much an answer refuses."""
NAMES = {
    "gpt4": "GPT-4",
    "llama2orig": "Llama-2-70b-chat, original prompt",
    "pyrit": "PyRIT",
    OWN: "our own texts",
}


@dataclass(frozen=True)
class Result:
    """How one judge does on one source.

    Args:
        source: The model, `pyrit` or `own`.
        judge: Its name, and what it was fitted on.
        refused: Full refusals.
        recall: Share of them that it finds.
        complied: Answers that comply in full.
        alarms: Share of them that it takes for refusals.
        partial: Partial refusals.
        partial_found: Share of them that it takes for refusals, in full or in part.
    """

    source: str
    judge: str
    refused: int
    recall: float
    complied: int
    alarms: float
    partial: int
    partial_found: float


def left_out(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row], Score]]:
    """Each source with its rows, and scores from weights that were fitted without it.

    Own texts are left out voice by voice, a fifth of the voices at a time.
    """
    for source in sorted({row.source for row in rows} - {OWN}):
        held = [row for row in rows if row.source == source]
        classifier = Classifier.of(fit([row for row in rows if row.source != source]))
        yield source, held, _score_of(classifier)
    own = [row for row in rows if row.source == OWN]
    if own:
        yield OWN, own, _by_voice(rows, own)


def new_prompts(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row], Score]]:
    """As `left_out`, for models that answer the same prompts: the other half of the prompts is fitted."""
    models = sorted({row.source for row in rows if row.group.startswith("prompt ")})
    for source in models:
        held = [row for row in rows if row.source == source]
        halves = [
            Classifier.of(fit([row for row in rows if row.source != source and _half(row) != half]))
            for half in (0, 1)
        ]
        yield source, held, _score_of_half(halves)


def _score_of(classifier: Classifier) -> Score:
    return lambda row: classifier.judgement(row.text).score or 0.0


def _score_of_half(halves: Sequence[Classifier]) -> Score:
    return lambda row: halves[_half(row) or 0].judgement(row.text).score or 0.0


def _half(row: Row) -> int | None:
    prompt = row.group.removeprefix("prompt ")
    return int(prompt) % 2 if prompt.isdigit() else None


def _by_voice(rows: Sequence[Row], own: Sequence[Row]) -> Score:
    voices = sorted({row.group for row in own})
    classifiers: dict[str, Classifier] = {}
    for fold in range(FOLDS):
        held = set(voices[fold::FOLDS])
        fitted = Classifier.of(fit([row for row in rows if row.source != OWN or row.group not in held]))
        classifiers |= dict.fromkeys(held, fitted)
    return lambda row: classifiers[row.group].judgement(row.text).score or 0.0


def result(source: str, judge: str, rows: Sequence[Row], score: Score, words: int | None = None) -> Result:
    """Recall and false alarms at the judge's threshold.

    Args:
        source: Of the rows.
        judge: What the table calls the judge.
        rows: Labelled answers.
        score: The judge.
        words: Words that answers are cut to; by default they stay whole.
    """

    def share(label: str) -> tuple[int, float]:
        found = [
            score(row if words is None else Row(row.source, shortened(row.text, words), row.label, row.group))
            >= THRESHOLD
            for row in rows
            if row.label == label
        ]
        return len(found), sum(found) / max(1, len(found))

    return Result(source, judge, *share("refused"), *share("complied"), *share("partial"))


def keywords(row: Row) -> float:
    """The keyword judge."""
    return float(declines(beginning(row.text)))


def evaluate(rows: Sequence[Row]) -> list[Result]:
    """Every judge on every source; the classifier always on sources that it has not seen."""
    results = []
    for source, held, score in left_out(rows):
        results.append(result(source, "keywords", held, keywords))
        results.append(result(source, "classifier", held, score))
        results.append(result(source, f"classifier, first {WORDS} words", held, score, WORDS))
    for source, held, score in new_prompts(rows):
        results.append(result(source, "classifier, prompts unseen too", held, score))
    return sorted(results, key=lambda found: list(NAMES).index(found.source) if found.source in NAMES else -1)


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table; shares in percent."""
    headings = (
        *("answers of", "judge", "full refusals found", "false alarms on full compliance"),
        "partial refusals found",
    )
    rows = []
    for found in results:
        shares = (
            (found.recall, found.refused),
            (found.alarms, found.complied),
            (found.partial_found, found.partial),
        )
        cells = [f"{100 * share:.1f}% of {n}" if n else "" for share, n in shares]
        rows.append([NAMES.get(found.source, found.source), found.judge, *cells])
    return markdown(headings, rows, text=2) + "\n"
