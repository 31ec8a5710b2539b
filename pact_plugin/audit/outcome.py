"""Two readings -> the audit: judged, compared, summed up, held against the thresholds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone

from pact_plugin.audit import result
from pact_plugin.audit.coherence import coherence
from pact_plugin.audit.compare import Pairs, changed_most_first, compare
from pact_plugin.audit.describe import versions
from pact_plugin.audit.everyday import summary
from pact_plugin.audit.judging import Judges, agree
from pact_plugin.audit.measures import Everyday, JudgedAnswer
from pact_plugin.audit.noise import noise
from pact_plugin.audit.notes import of_answers, of_models, of_noise
from pact_plugin.audit.reading import Answers
from pact_plugin.audit.settings import AuditSettings
from pact_plugin.audit.survey import CandidateReading, ReferenceReading, Survey
from pact_plugin.audit.task import likelihood
from pact_plugin.audit.verdict import judge
from pact_plugin.data.prompts import KINDS, Kind, Prompt

Likelihoods = tuple[Sequence[float | None], Sequence[float | None]]
"""Of the reference's own answers and of the candidate's, under the reference."""
Sides = tuple[Sequence[JudgedAnswer], Sequence[JudgedAnswer]]
"""The answers of the reference and of the candidate, one for each prompt."""


def assembled(
    survey: Survey,
    readings: tuple[ReferenceReading, CandidateReading],
    settings: AuditSettings,
    judges: Judges,
    likelihoods: Likelihoods | None,
) -> result.AuditResult:
    """The audit of two models that were asked in the same survey.

    Args:
        survey: What they were asked.
        readings: Of the reference and of the candidate.
        settings: What is allowed.
        judges: Who says what the answers do.
        likelihoods: How likely the reference finds the answers, if it read them.

    Raises:
        ConfigError: A smallest refusal rate is asked for, and there is no harmful prompt.
        JudgeError: None of a guard's verdicts can be read.
        NonFiniteError: A divergence is infinite.
    """
    began = time.perf_counter()
    reference, candidate = readings
    prompts = survey.prompts.prompts
    before, after = reference.confidence, candidate.confidence
    pairs = None if before is None or after is None else list(zip(before, after, strict=True))
    own, theirs = likelihoods or (None, None)
    sides = (
        _judged(judges, prompts, reference.answers, own),
        _judged(judges, prompts, candidate.answers, theirs),
    )
    rounds = _again(judges, prompts, sides[0], reference.rounds)
    found = _comparisons(survey, sides, pairs, rounds)
    verdict = judge(found, settings.thresholds)
    flips = [sum(one[i] != answer.refused for one in rounds) for i, answer in enumerate(sides[0])]
    said = [
        *reference.notes,
        *of_noise(verdict),
        *of_answers(found, settings.judges, judges.harm),
        *of_models((reference.model, candidate.model), found),
    ]
    both = [
        one for side in sides for one, asked in zip(side, prompts, strict=True) if judges.compares(asked.kind)
    ]
    return result.AuditResult(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(reference.seconds + candidate.seconds + time.perf_counter() - began, 1),
        reference=reference.model,
        candidate=candidate.model,
        settings=_settings(survey, settings),
        safety_tokens=_tokens(survey, reference),
        harmful=found.get("harmful"),
        benign=found.get("benign"),
        verdict=verdict,
        agreement=agree(settings.judges[1], both) if len(settings.judges) > 1 else None,
        task=likelihood(reference.task, candidate.task),
        everyday=_everyday(reference, candidate),
        notes=said,
        prompts=changed_most_first(prompts, *sides, pairs, flips if rounds else None),
    )


def _judged(
    judges: Judges, prompts: Sequence[Prompt], answers: Answers, likelihoods: Sequence[float | None] | None
) -> list[JudgedAnswer]:
    """A model's answer to every prompt, with how likely the reference finds it if it read them."""
    texts, kinds = [one.prompt for one in prompts], [one.kind for one in prompts]
    found = judges.judge(texts, answers.texts, kinds)
    values = likelihoods or [None] * len(found)
    return [one.model_copy(update={"likelihood": value}) for one, value in zip(found, values, strict=True)]


def _comparisons(
    survey: Survey, sides: Sides, pairs: Pairs | None, rounds: Sequence[Sequence[bool]]
) -> dict[Kind, result.Comparison]:
    found: dict[Kind, result.Comparison] = {}
    for kind in KINDS:
        kept = survey.places(kind)
        if not kept:
            continue
        own, theirs = ([side[i].likelihood for i in kept] for side in sides)
        beside = {
            "noise": noise(kept, [one.refused for one in sides[0]], rounds) if rounds else None,
            "coherence": coherence(own, theirs),
        }
        found[kind] = compare(survey.prompts.prompts, kept, *sides, pairs).model_copy(update=beside)
    return found


def _again(
    judges: Judges, prompts: Sequence[Prompt], first: Sequence[JudgedAnswer], rounds: Sequence[Sequence[str]]
) -> list[list[bool]]:
    """Whether each prompt was refused in each further round; answers that are as before are not judged again."""
    found = []
    for one in rounds:
        refused = [answer.refused for answer in first]
        other = [i for i, text in enumerate(one) if text != first[i].answer]
        judged = judges.refused(
            [prompts[i].prompt for i in other],
            [one[i] for i in other],
            [prompts[i].kind for i in other],
        )
        for place, flag in zip(other, judged, strict=True):
            refused[place] = flag
        found.append(refused)
    return found


def _everyday(reference: ReferenceReading, candidate: CandidateReading) -> Everyday | None:
    kept, sums = reference.everyday, candidate.everyday
    return None if kept is None or sums is None else summary(kept, sums)


def _tokens(survey: Survey, reference: ReferenceReading) -> result.Tokens | None:
    tokens = reference.tokens
    if tokens is None:
        return None
    source = "chosen from the reference's answers" if survey.safety_tokens is None else "given"
    return result.Tokens(digest=tokens.digest, tokens=list(tokens.tokens), source=source)


def _settings(survey: Survey, settings: AuditSettings) -> result.Settings:
    asking = survey.asking
    return result.Settings(
        prompts=survey.prompts.source,
        prompts_digest=survey.prompts.digest,
        limit=asking.limit,
        max_new_tokens=asking.max_new_tokens,
        batch_size=asking.batch_size,
        judges=list(settings.judges),
        noise_floor=asking.noise_floor,
        versions=dict(versions("pact-plugin", "torch", "transformers")),
    )
