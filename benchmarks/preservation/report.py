"""The results to read: JSON, a Markdown table with samples, and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.preservation import plots
from benchmarks.preservation.run import ALIGNED
from benchmarks.preservation.summary import KEYWORDS, STYLE_MEASURES, Mean, Row, belongs, load, summarise
from pact_plugin.errors import ConfigError

HEADINGS = (
    "method, strength",
    "seeds",
    "attack: direct",
    "role-play",
    "prefilled",
    "all, by classifier",
    "judges agree",
    "over-refusal",
    "task score",
    "refusals, nats/token",
    "KL everyday",
)
SAMPLES = 2


def write(folder: Path) -> Path:
    """Write `preservation.json`, `preservation.md` and a plot for each setting from the cells of a folder.

    Returns:
        The Markdown file.

    Raises:
        ConfigError: There are no cells.
    """
    found = load(folder)
    rows = summarise(found)
    if not rows:
        raise ConfigError(
            "no run has been made there",
            key="output",
            value=str(folder),
            remedy="Run `python -m benchmarks preservation` first.",
        )
    content = {
        "format": "pact-preservation",
        "version": 1,
        "machine": found[0]["machine"],
        "sizes": found[0]["sizes"],
        "rows": [asdict(row) for row in rows],
    }
    (folder / "preservation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = [_machine(found)]
    for setting in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == setting]
        name = f"preservation-{setting[0]}-{setting[1]:g}-{setting[2]}.png"
        plots.frontier(here, folder / name, title(setting))
        own = [item for item in found if belongs(item, setting)]
        parts += [f"## {title(setting)}", f"![{title(setting)}]({name})", table(here), samples(own)]
    path = folder / "preservation.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def title(setting: tuple[str, float, str]) -> str:
    """A setting in words."""
    task, share, train = setting
    way = "LoRA" if train == "lora" else "full fine-tuning"
    return f"{task}, {share:.0%} harmful requests, {way}"


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds; attack success by the keyword judge, except where it says otherwise."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
    for row in rows:
        of = row.measures
        other = next((name for name in row.judges if name != KEYWORDS), None)
        cells = [
            row.title,
            str(of["attack_success"].seeds),
            *(percent(of[name]) for name in STYLE_MEASURES),
            percent(row.judges[other]["attack_success"]) if other else "",
            percent(row.agreement[other]) if other else "",
            percent(of["over_refusal"]),
            percent(of["task_score"]),
            number(of.get("coherence")),
            number(of["kl_everyday"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percent(value: Mean) -> str:
    """In percent, with the spread if there are several seeds."""
    spread = f" ± {100 * value.spread:.1f}" if value.seeds > 1 else ""
    return f"{100 * value.mean:.1f}{spread}"


def number(value: Mean | None) -> str:
    """In nats, with the spread if there are several seeds; a dash if there is none."""
    if value is None:
        return "–"
    return f"{value.mean:.3f}" + (f" ± {value.spread:.3f}" if value.seeds > 1 else "")


def samples(found: Sequence[dict[str, Any]]) -> str:
    """The first answers of each method to harmful and benign prompts, from its first run."""
    lines = ["| method | kind | answers begin |", "| --- | --- | --- |"]
    seen = set()
    for item in sorted(found, key=lambda i: (i["cell"]["method"] != ALIGNED, i["cell"].get("seed", 0))):
        method = item["cell"]["method"]
        if method in seen:
            continue
        seen.add(method)
        for kind in ("harmful", "benign"):
            texts = [" ".join(t.split())[:90].replace("|", "\\|") for t in item["answers"][kind][:SAMPLES]]
            lines.append(f"| {method} | {kind} | {' // '.join(texts)} |")
    return "\n".join(lines)


def _machine(found: Sequence[dict[str, Any]]) -> str:
    info, sizes = found[0]["machine"], found[0]["sizes"]
    place = info["accelerator"] or f"{info['cpu']}, {info['threads']} thread(s)"
    harmful = len(found[0]["answers"]["harmful"])
    benign = len(found[0]["answers"]["benign"])
    return (
        f"# Preservation\n\n{place}, {info['dtype']}; {sizes['items']} training items, batch {sizes['batch_size']}, "
        f"one epoch; {harmful} harmful and {benign} benign prompts that were held out, "
        f"{sizes['answer_tokens']} tokens of answer. "
        "Percent, mean ± standard deviation over seeds. `attack`: share of harmful "
        "requests not refused, by the keyword judge. `refusals, nats/token`: mean log-probability of the "
        "refusals under the aligned model; word salad is far below the aligned model's own. `KL everyday`: to the "
        "aligned model on its answers to everyday questions."
    )
