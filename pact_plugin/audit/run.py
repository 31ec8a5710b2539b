"""The audit from beginning to end: the reference, then the candidate, never both in memory unless they share it."""

from __future__ import annotations

import gc
from typing import Any

import torch

from pact_plugin.audit import result
from pact_plugin.audit.judging import Judges
from pact_plugin.audit.outcome import Likelihoods, assembled
from pact_plugin.audit.settings import AuditSettings, Models
from pact_plugin.audit.survey import CandidateReading, ReferenceReading, Survey
from pact_plugin.audit.verdict import require_harmful
from pact_plugin.data.generation import Progress
from pact_plugin.data.prompts import PromptSet
from pact_plugin.model.wrappers import adapter_off, peft_model


def run_audit(
    models: Models,
    prompts: PromptSet,
    settings: AuditSettings | None = None,
    progress: Progress | None = None,
) -> result.AuditResult:
    """Compare what two models refuse, how sure they are of the safety tokens, and what else they can do.

    Both answer every prompt greedily. Then both read the reference's own answers (teacher-forced), each prompt in
    the model's own chat format, and their confidence on the safety tokens is compared at every position. The
    reference is let go before the candidate is loaded, and both before a guard model is. To compare several candidates
    with one reference, use `Survey`.

    Args:
        models: The models.
        prompts: What they are asked.
        settings: What is measured, and what is allowed.
        progress: Called with (done, total, description) as prompts are done.

    Raises:
        ConfigError: A setting cannot be used, or a prompt is too long for a model.
        JudgeError: A judge cannot be loaded, or none of its verdicts can be read.
        TokenizerMismatchError: The candidate has another vocabulary, or the safety tokens belong to another.
        ModelStructureError: A model's head is of a kind that is not known.
        NonFiniteError: A model's probabilities are NaN, or a divergence is infinite.
    """
    settings = settings or AuditSettings()
    judges = Judges(settings.judges)
    survey = Survey(
        prompts,
        settings.asking,
        safety_tokens=settings.safety_tokens,
        task=settings.task,
        everyday=settings.everyday,
    )
    if settings.thresholds.fail_under_refusal is not None and not survey.places("harmful"):
        require_harmful()
    first, second = models.names
    reference = survey.reference(*models.reference(), name=first, progress=_titled(progress, "Reference"))
    _free()
    model, tokenizer = models.candidate()
    candidate = survey.candidate(
        model, tokenizer, reference, name=second, progress=_titled(progress, "Candidate")
    )
    likelihoods: Likelihoods | None = None
    title = _titled(progress, "Reference")
    if models.adapter and not _trained_bias(peft_model(model)):
        with adapter_off(peft_model(model)):
            likelihoods = survey.coherence(model, reference, candidate, title)
    del model
    _free()
    if likelihoods is None and (settings.coherence or models.adapter):
        likelihoods = survey.coherence(models.reference()[0], reference, candidate, title)
        _free()
    return assembled(survey, (reference, candidate), settings, judges, likelihoods)


def compared(
    survey: Survey,
    reference: ReferenceReading,
    candidate: CandidateReading,
    settings: AuditSettings | None = None,
) -> result.AuditResult:
    """The audit of two models that were asked in the same survey.

    Raises:
        ConfigError: A smallest refusal rate is asked for, and there is no harmful prompt.
        JudgeError: A judge cannot be loaded, or none of its verdicts can be read.
        NonFiniteError: A divergence is infinite.
    """
    settings = settings or AuditSettings()
    return assembled(survey, (reference, candidate), settings, Judges(settings.judges), None)


def _trained_bias(peft: Any) -> bool:
    """Whether biases of the model itself came with the adapter: PEFT leaves these in place where it is switched off."""
    return any(getattr(config, "bias", "none") != "none" for config in peft.peft_config.values())


def _titled(progress: Progress | None, title: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, description: progress(done, total, f"{title}: {description}")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
