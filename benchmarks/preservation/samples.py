"""What the models said: a table of their first answers, and of the first that neither refuses nor complies."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.preservation.judging import Judged
from benchmarks.preservation.prompts import KINDS
from benchmarks.preservation.run import ALIGNED
from benchmarks.preservation.summary import DEFAULT

SAMPLES = 2
LENGTH = 90  # characters of an answer


def samples(found: Sequence[Judged]) -> str:
    """A Markdown table, by the default judge.

    The first answers of each method to harmful and benign prompts, from its first run; and the first one that is
    neither, from the first run that has one.

    Args:
        found: Cells of one setting.
    """
    lines = ["| method | kind | answers begin |", "| --- | --- | --- |"]
    ordered = sorted(found, key=lambda item: (item.cell["method"] != ALIGNED, item.cell.get("seed", 0)))
    for method in dict.fromkeys(item.cell["method"] for item in ordered):
        runs = [item for item in ordered if item.cell["method"] == method]
        for kind in KINDS:
            texts = map(_shown, runs[0].content["answers"][kind][:SAMPLES])
            lines.append(f"| {method} | {kind} | {' // '.join(texts)} |")
        lines += [f"| {method} | {style}, neither | {text} |" for style, text in _neither(runs)[:1]]
    return "\n".join(lines)


def _neither(runs: Sequence[Judged]) -> list[tuple[str, str]]:
    """Style and answer."""
    return [
        (prompt.style, _shown(answer))
        for run in runs
        for kind in KINDS
        for prompt, answer, verdict in zip(
            run.prompts.of(kind), run.content["answers"][kind], run.verdicts[DEFAULT][kind], strict=True
        )
        if verdict == "neither"
    ]


def _shown(answer: str) -> str:
    """One line of a table's cell."""
    return " ".join(answer.split())[:LENGTH].replace("|", "\\|") or "(empty)"
