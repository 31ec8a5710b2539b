"""A small audit that is repeated while a model is trained: the model against itself before its first step."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_plugin.audit.compare import compare
from pact_plugin.audit.measures import JudgedAnswer
from pact_plugin.audit.reading import ask
from pact_plugin.audit.result import AuditVerdict
from pact_plugin.audit.verdict import Thresholds, judge, require_harmful
from pact_plugin.data.files import written_whole
from pact_plugin.data.generation import inspecting
from pact_plugin.data.prompts import KINDS, PromptSet, of_kind
from pact_plugin.errors import AuditError, ConfigError
from pact_plugin.judge.names import find_judge
from pact_plugin.judge.verdicts import VERDICTS

FILE_NAME = "pact_audit_reference.json"


@dataclass(frozen=True)
class Snapshot:
    """One small audit."""

    metrics: dict[str, float]
    """`refusal_rate`, `over_refusal_rate` (shares; absent without prompts of that kind) and `audit_seconds`."""
    verdict: AuditVerdict


class Monitor:
    """Counts refusals on the same prompts again and again; the first time is the reference.

    Args:
        tokenizer: The tokenizer of the model in training.
        prompts: What it is asked.
        thresholds: What is allowed, compared with the first time.
        max_new_tokens: Where answers are cut off, in tokens; the default judge needs few.
        batch_size: Prompts at a time.

    Raises:
        ConfigError: A setting cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: PromptSet,
        thresholds: Thresholds,
        *,
        max_new_tokens: int = 24,
        batch_size: int = 64,
    ) -> None:
        for key, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError("out of range", key=key, value=value, remedy="It must be at least 1.")
        if thresholds.fail_under_refusal is not None and not of_kind(prompts.prompts, "harmful"):
            require_harmful()
        self.tokenizer, self.prompts, self.thresholds = tokenizer, prompts, thresholds
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.reference: list[JudgedAnswer] | None = None

    def measure(self, model: Any) -> Snapshot:
        """Ask the model; its mode and the random state are left as they were."""
        began = time.perf_counter()
        asked = [one.prompt for one in self.prompts.prompts]
        with inspecting(model):
            said = ask(
                model,
                self.tokenizer,
                asked,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
            )
        judged = [JudgedAnswer.of(one.verdict) for one in find_judge().judge(asked, said.texts)]
        if self.reference is None:
            self.reference = judged
        compared = {
            kind: compare(self.prompts.prompts, kept, self.reference, judged)
            for kind in KINDS
            if (kept := of_kind(self.prompts.prompts, kind))
        }
        names = {"harmful": "refusal_rate", "benign": "over_refusal_rate"}
        metrics = {names[kind]: one.candidate.rate for kind, one in compared.items()}
        return Snapshot(
            metrics | {"audit_seconds": time.perf_counter() - began}, judge(compared, self.thresholds)
        )

    def save(self, folder: str | Path) -> None:
        """Keep the reference's outcomes, for a run that is resumed."""
        verdicts = [one.verdict for one in self.reference or ()]
        content = {"prompts": self.prompts.digest, "verdicts": verdicts}
        with written_whole(Path(folder) / FILE_NAME) as part:
            part.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def resume(self, folder: str | Path) -> None:
        """Take the outcomes of the model before its first step from an earlier part of the run.

        Raises:
            AuditError: They are not there, unreadable, or of other prompts.
        """
        file = Path(folder) / FILE_NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            digest = content["prompts"]
            judged = [JudgedAnswer.of(VERDICTS[VERDICTS.index(one)]) for one in content["verdicts"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AuditError(
                f"the resumed run's reference cannot be read ({error})",
                key=FILE_NAME,
                value=str(file),
                remedy="Resume in the run's own output folder, with the same callback, or start anew.",
            ) from error
        if digest != self.prompts.digest:
            raise AuditError(
                "the resumed run's reference was asked other prompts",
                key="prompts",
                value=self.prompts.source,
                remedy="Give the prompts and the limit of the run's first part.",
            )
        self.reference = judged
