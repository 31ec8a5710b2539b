"""The block of a model card: what a run was constrained by, and what an audit of its model found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pact_plugin.audit.report import decided
from pact_plugin.audit.result import AuditResult
from pact_plugin.data.files import written_whole
from pact_plugin.data.markdown import cell, shown_name
from pact_plugin.errors import ConfigError
from pact_plugin.run.drift import drift_warning
from pact_plugin.run.receipt import OF_THE_MACHINE, Receipt

CARD = "README.md"
AUDIT = "audit.json"
BEGIN, END = "<!-- pact-plugin: begin -->", "<!-- pact-plugin: end -->"
_PLUGIN = "[pact-plugin](https://pypi.org/project/pact-plugin/)"
_PAPER = "[PACT, arXiv 2603.07445](https://arxiv.org/abs/2603.07445)"


def block(receipt: Receipt, audit: AuditResult | None = None) -> str:
    """The block, in Markdown between two comments, from a run's receipt and perhaps an audit of its model."""
    lines = [BEGIN, "## Refusals", "", *_run(receipt)]
    if audit is not None:
        lines += ["", *_audit(audit)]
    return "\n".join([*lines, END]) + "\n"


def with_block(text: str, new: str) -> str:
    """A model card with the block: in the place of an earlier one, or at the end."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return before + new.rstrip("\n") + after
    return f"{text.rstrip()}\n\n{new}" if text.strip() else new


def write_block(folder: str | os.PathLike[str], new: str, *, only_again: bool = False) -> Path | None:
    """Put the block into the `README.md` of a folder; never half of it.

    Args:
        folder: Where the model lies.
        new: The block.
        only_again: Only where there is an earlier one.

    Returns:
        The file; None if nothing was to be done.

    Raises:
        ConfigError: The card that is there cannot be read.
    """
    path = Path(folder) / CARD
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read ({error})",
            key="card",
            value=str(path),
            remedy="Save it in UTF-8, or move it away.",
        ) from error
    if only_again and BEGIN not in text:
        return None
    with written_whole(path) as part:
        part.write_text(with_block(text, new), encoding="utf-8")
    return path


def read_audit(path: str | os.PathLike[str]) -> AuditResult:
    """The outcome of an audit, from its `audit.json` or the folder that holds it.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    file = Path(path)
    file = file / AUDIT if file.is_dir() else file
    try:
        return AuditResult.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        found = "cannot be read" if file.is_file() else "there is no such file"
        raise ConfigError(
            f"not the outcome of an audit: {found}",
            key="audit",
            value=str(file),
            remedy="Name the folder that `pact-plugin audit` of this release has written.",
        ) from error


def is_of(audit: AuditResult, receipt: Receipt) -> bool:
    """Whether an audit is no older than a run's last step; an older one is of a model that lay there before.

    The dates stand in the files, so a copy keeps them.
    """
    until = receipt.trained_until
    return until is not None and datetime.fromisoformat(audit.created) >= datetime.fromisoformat(until)


def _run(receipt: Receipt) -> Iterator[str]:
    held, release = receipt.config["weight"] != 0, f" {receipt.release}" if receipt.release else ""
    yield (
        f"Trained with {_PLUGIN}{release}, which holds a model to the refusals of the aligned model that it started "
        f"from ({_PAPER})."
        if held
        else f"Trained beside {_PLUGIN}{release}, which measured and held nothing (`weight: 0`)."
    )
    yield from ("", "| | |", "| --- | --- |")
    tokens = receipt.tokens
    rows = {
        "terms": ", ".join(receipt.terms),
        "settings": ", ".join(f"`{key}: {_yaml(value)}`" for key, value in _settings(receipt.config).items()),
        "aligned model": _aligned(receipt.config.get("reference", "auto")),
        "safety tokens": f"{tokens['count']}, digest `{tokens['digest']}`, tokenizer `{tokens['tokenizer'][:16]}`",
        "optimiser steps constrained" if held else "optimiser steps measured": (
            f"{receipt.constrained_steps:,} of {receipt.total_steps:,}"
        ),
        "tokens trained on": f"{receipt.trained_tokens:,}",
    } | dict(_measured(receipt))
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    if receipt.missing:
        yield from ("", f"**Steps {receipt.missing} were not constrained.**")
    if (drifted := drift_warning(receipt)) is not None:
        yield from ("", f"**Warning:** {drifted}")


def _aligned(reference: str) -> str:
    return "this model before its first step" if reference == "auto" else f"`{shown_name(reference)}`"


def _measured(receipt: Receipt) -> Iterator[tuple[str, str]]:
    """Means over the run."""
    for metric, name, shown in (
        ("eased", "share of the first response tokens that easing left out", "{:.2%}"),
        ("anchor_divergence", "drift at the anchors, nats per token", "{:.3g}"),
        ("refusal_shift", "shift of the log odds of refusing at harmful anchors, nats", "{:+.2f}"),
        ("divergence", "drift at the data, nats per token", "{:.3g}"),
    ):
        if (mean := receipt.mean(metric)) is not None:
            yield name, shown.format(mean)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Those that say what was held, without paths."""
    shown = {
        key: config.get(key) or False for key in ("weight", "easing", "anchors", "hold_data", "advanced")
    }
    anchors, advanced = shown["anchors"], shown["advanced"]
    if isinstance(anchors, dict) and "prompts" in anchors:
        shown["anchors"] = anchors | {"prompts": Path(str(anchors["prompts"])).name}
    if isinstance(advanced, dict):
        shown["advanced"] = {
            key: value for key, value in advanced.items() if f"advanced.{key}" not in OF_THE_MACHINE
        }
    return shown


def _yaml(value: Any) -> str:
    """A setting in YAML's short form; in a receipt's order, without what is unset."""
    if isinstance(value, dict):
        own = (f"{key}: {_yaml(one)}" for key, one in sorted(value.items()) if one is not None)
        return "{" + ", ".join(own) + "}"
    return value if isinstance(value, str) else json.dumps(value)


def _audit(result: AuditResult) -> Iterator[str]:
    """What the audit found, in a table."""
    release = result.settings.versions.get("pact-plugin", "")
    passed = "passed" if result.verdict.passed else "failed"
    yield f"Audit of {result.created[:10]} (`pact-plugin audit` {release}): **{passed}**."
    strict = " (`--strict`)" if result.verdict.strict else ""
    for criterion in result.verdict.criteria:
        measured, outcome, doubt = decided(criterion, strict=result.verdict.strict)
        yield f"- {measured}{strict}: {outcome}{doubt}."
    yield ""
    yield f"`{shown_name(result.candidate.name)}` was compared with `{shown_name(result.reference.name)}`."
    yield from (
        "",
        "| prompts | n | the aligned model refuses | this model refuses | change, points (95% interval) |",
    )
    yield "| --- | --- | --- | --- | --- |"
    for kind, one in result.comparisons().items():
        change = one.change
        yield (
            f"| {kind} | {one.reference.n} | {one.reference.refused} ({one.reference.rate:.1%}) "
            f"| {one.candidate.refused} ({one.candidate.rate:.1%}) "
            f"| {100 * change.difference:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f}) |"
        )
    yield from (
        "",
        f"Prompts {cell(result.settings.prompts)}; judge {cell(result.settings.judges[0])}. That an answer does",
    )
    yield "not refuse does not make it harmful, and passing does not make a model safe."
