"""The report of an audit: `report.html` for people, `audit.json` and PNG files for programs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from pact_plugin.audit import charts
from pact_plugin.audit.result import AuditResult, Criterion, Prompt
from pact_plugin.audit.verdict import CRITERIA
from pact_plugin.data.files import written_whole
from pact_plugin.data.prompts import BUNDLED
from pact_plugin.errors import PluginError

VERDICT_NAMES = {
    "refused": "refused",
    "partial": "refused in part",
    "complied": "not refused",
    "neither": "neither",
    None: "not read",
}
SHOWN = 20
"""Prompts of each group that the report prints."""


def write(result: AuditResult, folder: Path) -> list[Path]:
    """Write the whole report into a folder, which is made if need be.

    Returns:
        The files: `audit.json`, `report.html` and the PNG files.

    Raises:
        PluginError: matplotlib or Jinja2 is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The numbers first: should a chart fail, they are there.
    written = [_write(folder / "audit.json", result.model_dump_json(indent=2) + "\n")]
    written.append(_write(folder / "report.html", html(result)))
    return written + charts.png(result, folder)


def html(result: AuditResult) -> str:
    """The report as one HTML document that needs no network and runs no script."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise PluginError("the report needs Jinja2", remedy="pip install 'pact-plugin[cli]'") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points, "p": p_value, "of": amount}
    environment.filters |= {"nats": nats, "change": nats_change}
    source = files("pact_plugin").joinpath("audit", "templates", "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        result=result,
        groups=groups(result.prompts),
        shown=SHOWN,
        verdicts=VERDICT_NAMES,
        disputed=[one for one in result.prompts if one.reference.disputed or one.candidate.disputed],
        fewest=charts.FEWEST,
        bundled=BUNDLED,
        criteria=CRITERIA,
        drawn=charts.svg(result),
        charts=charts.charts(result),
        colours=charts.COLOURS,
    )


def groups(prompts: Sequence[Prompt]) -> list[tuple[str, str, list[Prompt]]]:
    """The prompts by what changed: title, explanation, prompts; groups without a prompt are left out."""

    def changed(kind: str, before: bool) -> list[Prompt]:
        return [
            one
            for one in prompts
            if one.kind == kind and one.reference.refused == before and one.candidate.refused != before
        ]

    rest = [one for one in prompts if one.reference.refused == one.candidate.refused and one.divergence]
    found = [
        (
            "Harmful, refused before and not now",
            "The losses. Read the answers: “not refused” is not the same as “harmful”.",
            changed("harmful", True),
        ),
        (
            "Benign, answered before and refused now",
            "New over-refusals: help that users no longer get.",
            changed("benign", False),
        ),
        (
            "Harmful, not refused before and refused now",
            "Refusals that the candidate has gained.",
            changed("harmful", False),
        ),
        (
            "Benign, refused before and answered now",
            "Over-refusals that the candidate has lost.",
            changed("benign", True),
        ),
        (
            "Same judgement, confidence changed most",
            "Both models were judged alike here; along the reference's answer their confidence differs most.",
            rest,
        ),
    ]
    return [group for group in found if group[2]]


def percent(share: float) -> str:
    """A share from 0 to 1 as a percentage."""
    return f"{100 * share:.1f}%"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = round(100 * share, 1)
    return f"{value:+.1f}".replace("-", "−") if value else "0.0"


def amount(value: float, criterion: Criterion) -> str:
    """A value of a criterion, with its unit."""
    return percent(value) if criterion.name == "refusal_rate" else f"{points(value).lstrip('+')} points"


class Decided(NamedTuple):
    """A threshold in words."""

    measured: str
    """What was measured, and what is allowed."""
    outcome: str
    """`passed` or `failed`."""
    doubt: str
    """What weakens the outcome, behind a comma; empty if nothing does."""


def decided(one: Criterion, *, strict: bool) -> Decided:
    """A threshold in words.

    Args:
        one: The threshold.
        strict: Whether the worst end of the interval decides.
    """
    limit = "at least" if one.name == "refusal_rate" else "at most"
    worst, doubt = f"worst end of the interval {amount(one.worst, one)}", ""
    decides = f", {worst}" if strict else ""
    measured = f"{CRITERIA[one.name]}: {amount(one.measured, one)}{decides}, {limit} {amount(one.bound, one)}"
    if one.within_noise and one.passed and one.measured > one.bound:
        doubt = ", within noise"
    elif not one.certain:
        doubt = ", not certain" + ("" if strict else f" ({worst})")
    return Decided(measured, "passed" if one.passed else "failed", doubt)


def p_value(value: float) -> str:
    """A p-value as it is printed, `= 0.031`."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def nats(value: float) -> str:
    """A log-likelihood in nats."""
    return f"{value:.3f}".replace("-", "−")


def nats_change(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def _write(path: Path, text: str) -> Path:
    """Whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path
