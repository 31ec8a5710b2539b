"""The audit at the end of the demo: a fine-tuned model against the aligned one, on the held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pact_plugin as pact
from pact_demo.evaluate import Questions
from pact_plugin.audit import report
from pact_plugin.audit.prompts import KINDS, from_rows
from pact_plugin.audit.result import AuditResult
from pact_plugin.audit.run import run_audit
from pact_plugin.generate import Progress

ANSWER_TOKENS = 32


def audit_report(
    aligned: Any,
    tuned: Any,
    tokenizer: Any,
    tokens: pact.SafetyTokens,
    questions: Questions,
    output: Path,
    progress: Progress | None = None,
    *,
    name: str = "fine-tuned model",
) -> AuditResult:
    """Audit a model that was tuned from the aligned one, and write the report into ``output``.

    Both models answer again: the demo's own answers are shorter, and without the confidence along them.

    Args:
        aligned: The reference.
        tuned: The candidate, with the same tokenizer.
        tokenizer: That of both.
        tokens: The demo's safety tokens.
        questions: The harmful and benign ones are asked.
        output: A folder, made if need be.
        progress: Called with (done, total, description).
        name: What the report calls the candidate.
    """
    rows = [{"prompt": prompt, "kind": kind} for kind in KINDS for prompt in getattr(questions, kind)]
    result = run_audit(
        lambda: (aligned, tokenizer),
        lambda: (tuned, tokenizer),
        from_rows(enumerate(rows, 1), "held out by the demo"),
        names=("aligned model", name),
        safety_tokens=tokens,
        max_new_tokens=ANSWER_TOKENS,
        batch_size=50,
        progress=progress,
    )
    report.write(result, output)
    return result
