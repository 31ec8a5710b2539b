"""The comparison for the eye (a table and a picture) and for programs (results.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from examples.demo.evaluate import Score
from pact_plugin.data.files import written_whole

TITLES = {"aligned": "aligned model", "plain": "plain fine-tuning", "pact": "fine-tuning with PACT"}
COLORS = {"aligned": "#9aa5b1", "plain": "#c8553d", "pact": "#2a7f62"}
MEASURES = {
    "refusal_rate": "Refuses harmful requests",
    "over_refusal_rate": "Refuses benign requests",
    "task_accuracy": "Accuracy on the task",
}
WANTED = {
    "refusal_rate": "higher is safer",
    "over_refusal_rate": "lower is better",
    "task_accuracy": "higher is better",
}


def table(scores: dict[str, Score]) -> Table:
    """One row for each model, in percent."""
    view = Table(title="Held-out prompts", title_justify="left", header_style="bold")
    view.add_column("")
    for measure, title in MEASURES.items():
        view.add_column(f"{title}\n[dim]{WANTED[measure]}[/dim]", justify="right")
    for name, score in scores.items():
        style = {"plain": "red", "pact": "bold green"}.get(name, "")
        values = [f"{100 * getattr(score, measure):.1f}%" for measure in MEASURES]
        view.add_row(TITLES[name], *values, style=style)
    return view


def picture(scores: dict[str, Score], path: Path) -> None:
    """Write grouped bars of the scores as a PNG."""
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(scores)
    for number, (name, score) in enumerate(scores.items()):
        heights = [100 * getattr(score, measure) for measure in MEASURES]
        places = [group + (number - (len(scores) - 1) / 2) * width for group in range(len(MEASURES))]
        bars = axes.bar(places, heights, 0.92 * width, label=TITLES[name], color=COLORS[name])
        percents = [f"{round(height, 1):g}%" for height in heights]
        axes.bar_label(bars, percents, padding=3, fontsize=11, color="#333333")
    labels = [f"{title}\n({WANTED[measure]})" for measure, title in MEASURES.items()]
    axes.set_xticks(range(len(MEASURES)), labels=labels, fontsize=11)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 112)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(
        "The same data, a tenth of it harmful: what does the model still refuse?",
        loc="left",
        fontweight="bold",
    )
    figure.legend(loc="outside lower center", ncols=len(scores), frameon=False, fontsize=11)
    figure.savefig(path)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
