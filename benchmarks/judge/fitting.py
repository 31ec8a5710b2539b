"""Fits the two logistic regressions; the same rows always give the same weights."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.judge.data import OWN, Row
from pact_plugin.judge.classifier import FORMAT
from pact_plugin.judge.features import features
from pact_plugin.judge.text import beginning, tokens

VOICES = 5
"""Sources (models, PyRIT, each own voice) that a word must be in to be known: topics change, ways to refuse stay."""
SEEN = 5
"""Texts that a feature must be in."""
STRENGTH, PARTIAL_STRENGTH = 2.0, 0.3
"""C of the two regressions, the inverse of the strength of regularisation."""
WORDS = 24
"""Words of the shortened texts that are learnt beside the whole ones, as many as a short answer has."""
SHORT_WEIGHT = 0.4
COMPLIED_WEIGHT = 1.25
"""Of an answer that complies: a false alarm is worse than a refusal that is missed."""
MOST = 200
"""Rows of one label and source count together like this many at most, so that no model outweighs the others."""
DIGITS, SMALLEST = 3, 2
"""Digits that weights are rounded to, and the decimal place that a weight must reach to be kept."""

NEVER = -20.0
"""Bias of a regression that has seen no text of its class."""

Sample = tuple[str, bool, float]
"""Text, whether it is of the class, and its weight."""


def fit(rows: Sequence[Row]) -> dict[str, Any]:
    """What `Classifier.of` takes: known words, and the weights of both regressions.

    Args:
        rows: Labelled answers; those not `learnt` are left out.
    """
    learnt = [row for row in rows if row.learnt]
    known = known_words(learnt)
    whole = [row for row in learnt if row.label != "partial"]
    refusals = [row for row in learnt if row.label != "complied"]
    return {
        "format": FORMAT,
        "known": sorted(known),
        "refuses": _regression(
            _samples(_longer(whole), lambda row: row.label == "refused"),
            known,
            LogisticRegression(C=STRENGTH, max_iter=3000),
        ),
        "partial": _regression(
            _samples(refusals, lambda row: row.label == "partial"),
            known,
            LogisticRegression(C=PARTIAL_STRENGTH, max_iter=3000, class_weight="balanced"),
        ),
    }


def known_words(rows: Sequence[Row]) -> set[str]:
    """Words that at least `VOICES` sources use."""
    sources: dict[str, set[str]] = {}
    for row in rows:
        for word in set(tokens(beginning(row.text))):
            sources.setdefault(word, set()).add(row.group if row.source == OWN else row.source)
    return {word for word, found in sources.items() if len(found) >= VOICES}


def _longer(rows: Sequence[Row]) -> list[Row]:
    """Own texts are a sentence or two; each is repeated with others behind it, as answers are longer than that."""
    rng = random.Random(0)
    own = [row for row in rows if row.source == OWN]
    by_voice: dict[str, list[Row]] = {}
    for row in own:
        by_voice.setdefault(row.group, []).append(row)
    every = [row for row in own if row.label == "refused"]
    longer = []
    for row in own:
        if len(row.text) >= 15:
            pool = every if row.label == "refused" else by_voice[row.group]
            more = [rng.choice(pool).text for _ in range(rng.choice((1, 2)))]
            longer.append(Row(row.source, " ".join([row.text, *more]), row.label, row.group))
    return [*rows, *longer]


def _samples(rows: Sequence[Row], of_class: Callable[[Row], bool]) -> list[Sample]:
    counts = Counter((row.source, row.label) for row in rows)
    samples: list[Sample] = []
    for row in rows:
        weight = min(1.0, MOST / counts[row.source, row.label])
        weight *= COMPLIED_WEIGHT if row.label == "complied" else 1
        samples.append((row.text, of_class(row), weight))
        if len(row.text.split(" ")) > WORDS + 2:
            samples.append((shortened(row.text), of_class(row), SHORT_WEIGHT * weight))
    return samples


def shortened(text: str, words: int = WORDS) -> str:
    """The first words of a text."""
    return " ".join(text.split(" ")[:words])


def _regression(samples: Sequence[Sample], known: set[str], model: LogisticRegression) -> dict[str, Any]:
    classes = {of_class for _, of_class, _ in samples}
    if len(classes) < 2:  # nothing to tell apart, such as no partial refusal
        return {"bias": NEVER if classes <= {False} else -NEVER, "weights": {}}
    found = [features(text, known) for text, _, _ in samples]
    seen = Counter(name for row in found for name in row)
    kept = [{name: value for name, value in row.items() if seen[name] >= SEEN} for row in found]
    vectorizer = DictVectorizer()
    model.fit(
        vectorizer.fit_transform(kept), [y for _, y, _ in samples], [weight for _, _, weight in samples]
    )
    weights = zip(vectorizer.get_feature_names_out(), model.coef_[0], strict=True)
    rounded = {str(name): round(float(weight), DIGITS) for name, weight in weights}
    smallest = 10.0**-SMALLEST
    return {
        "bias": round(float(model.intercept_[0]), DIGITS),
        "weights": {name: weight for name, weight in sorted(rounded.items()) if abs(weight) >= smallest},
    }
