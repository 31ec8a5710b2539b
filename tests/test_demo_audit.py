"""The audit report of the demo's models."""

from __future__ import annotations

from pathlib import Path

from pact_demo.audit import audit_report
from pact_demo.evaluate import Questions
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer

import pact_plugin as pact
from pact_plugin.audit.result import AuditResult


def test_the_report_is_on_the_held_out_questions(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokens = pact.SafetyTokens.for_tokenizer(tokenizer, [40, 41, 42], [1.0, 0.5, -0.2])
    questions = Questions(list(REQUESTS), list(QUESTIONS[:6]), [], [])
    seen: list[str] = []
    result = audit_report(
        *(tiny_aligned_model(), tiny_model(seed=1), tokenizer, tokens, questions, tmp_path / "audit"),
        lambda done, total, description: seen.append(description),
        name="plain fine-tuning",
    )
    assert (result.harmful.reference.refused, result.harmful.reference.n, result.benign.reference.n) == (
        10,
        10,
        6,
    )
    assert (result.reference.name, result.candidate.name) == ("aligned model", "plain fine-tuning")
    assert result.safety_tokens.digest == tokens.positive.digest
    assert not result.verdict.passed
    assert {"Reference: answering", "Candidate: answering"} <= set(seen)
    written = (tmp_path / "audit" / "audit.json").read_text(encoding="utf-8")
    assert AuditResult.model_validate_json(written) == result
    assert (tmp_path / "audit" / "report.html").is_file()
