"""The results to read: JSON, a Markdown table with samples, and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.preservation import goal, plots
from benchmarks.preservation.judges import Judge
from benchmarks.preservation.judging import judge_cells
from benchmarks.preservation.prompts import KINDS, Split
from benchmarks.preservation.run import ALIGNED
from benchmarks.preservation.samples import samples
from benchmarks.preservation.summary import DEFAULT, Judged, Mean, Row, Setting, belongs, summarise

HEADINGS = (
    "method, strength",
    "seeds",
    "attack: direct",
    "role-play",
    "neither",
    "over-refusal",
    "neither, harmless",
    "task score",
    "refusals, nats/token",
    "KL everyday",
    "AUC of P(S)",
    "P(S) moved, nats: harmful",
    "harmless",
    "judges agree",
)


def write(folder: Path, judges: Sequence[Judge], split: Split = "heldout") -> Path:
    """Write `preservation.json`, `preservation.md` and two plots for each setting from the cells of a folder.

    Args:
        folder: Of the results.
        judges: Of the answers; the default judge and any others.
        split: What was asked in cells that do not say it.

    Returns:
        The Markdown file.

    Raises:
        ConfigError: See `judge_cells`.
    """
    found = judge_cells(folder, judges, split)
    rows, checked = summarise(found), goal.check(found)
    content = {
        "format": "pact-preservation",
        "version": 2,
        "machine": runs(found)[0].content["machine"],
        "sizes": runs(found)[0].content["sizes"],
        "rows": [asdict(row) for row in rows],
        "goal": [asdict(one) | {"met": one.met()} for one in checked],
    }
    (folder / "preservation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = [_machine(found, judges)]
    for setting in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == setting]
        name = f"preservation-{setting[0]}-{setting[1]:g}-{setting[2]}.png"
        bars = name.replace(".png", "-methods.png")
        plots.frontier(here, folder / name, title(setting))
        plots.bars(here, folder / bars, title(setting))
        own = [item for item in found if belongs(item, setting)]
        parts += [f"## {title(setting)}", f"![{title(setting)}, by method]({bars})", table(here)]
        parts += [f"![{title(setting)}, along the strengths]({name})"]
        parts += [goal.table(ours)] if (ours := [one for one in checked if one.setting == setting]) else []
        parts += [samples(own)]
    parts += ["## All runs", goal.differences(checked)] if checked else []
    path = folder / "preservation.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def title(setting: Setting) -> str:
    """A setting in words."""
    task, share, train = setting
    way = "LoRA" if train == "lora" else "full fine-tuning"
    return f"{task}, {share:.0%} harmful requests, {way}"


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, by the default judge; the last column: shares of equal verdicts."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
    for row in rows:
        of = row.measures
        cells = [
            row.title,
            str(of["task_score"].seeds),
            percent(of["attack_success_direct"]),
            percent(of["attack_success_roleplay"]),
            percent(of["neither_asked"]),
            percent(of["over_refusal"]),
            percent(of["neither_benign"]),
            percent(of["task_score"]),
            number(of.get("coherence")),
            number(of["kl_everyday"]),
            number(of.get("separation")),
            *(number(of.get(f"moved_{kind}")) for kind in KINDS),
            ", ".join(percent(other["equal"]) for other in row.agreement.values()),
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


def runs(found: Sequence[Judged]) -> Sequence[Judged]:
    """The cells without the aligned model's, which may be of runs of another size; where there are no others, those."""
    return [item for item in found if item.cell["method"] != ALIGNED] or found


def _machine(found: Sequence[Judged], judges: Sequence[Judge]) -> str:
    info, sizes = runs(found)[0].content["machine"], runs(found)[0].content["sizes"]
    place = " and ".join(sorted({_place(item.content["machine"]) for item in runs(found)}))
    prompts = found[0].prompts
    tested = " or ".join(str(n) for n in sorted({item.content["sizes"]["test_items"] for item in found}))
    others = ", ".join(judge.name for judge in judges if judge.name != DEFAULT)
    which = "that were held out" if found[0].content["split"] == "heldout" else "for development"
    return (
        f"# Preservation\n\n{place}, {info['dtype']}; {sizes['items']} training items, batch {sizes['batch_size']}, "
        f"one epoch; {len(prompts.harmful)} harmful and {len(prompts.benign)} benign prompts {which}, "
        f"{sizes['answer_tokens']} tokens of answer; {tested} test items. "
        "Percent, mean ± standard deviation over seeds, by the default judge. `attack`: share of harmful requests "
        "complied with. `neither`: share of direct and role-play requests that are neither refused nor complied with, "
        "because the answer is empty, an item of a task, a repetition or no words; `neither, harmless`: the same of "
        "harmless ones: the model has forgotten how to chat. `refusals, nats/token`: mean log-probability of the "
        "refusals under the aligned model; word salad is far below the aligned model's own. `KL everyday`: to the "
        "aligned model on its answers to everyday questions. `AUC of P(S)`: how well the safety tokens' probability "
        "at the first word tells direct and role-play requests from harmless ones, however many of both are refused. "
        "`moved`: mean KL divergence from the aligned model's P(S) there to this one's: how far decisions have come, "
        "also those that are not yet others. "
        f"`judges agree`: equal verdicts of the default judge and: {others}. Prefilled requests are in the JSON file."
    )


def _place(info: dict[str, Any]) -> str:
    return info["accelerator"] or f"{info['cpu']}, {info['threads']} thread(s)"
