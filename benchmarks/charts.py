"""The results for the eye: a table for the terminal and for Markdown, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.overhead import EPOCHS, Kind
from benchmarks.result import Run
from benchmarks.settings import PLAIN, Settings

HEADINGS = (
    "response",
    "step",
    "seconds",
    "time ratio (quartiles)",
    "tokens/s",
    "peak MiB",
    "memory ratio",
    "filling",
    f"{EPOCHS} epochs",
)
"""`filling`: of the table, as a share of a plain epoch's time. `3 epochs`: ratio of the whole run, filling included."""
TIME, MEMORY, FRAME = "#2a7f62", "#7b8794", "#c8553d"


def title(settings: Settings) -> str:
    """What was measured, in one line."""
    shape = settings.sizes
    trainer = "TRL, no full logits" if settings.loss == "chunked" else "Trainer, full logits"
    way = f"LoRA r={settings.rank}" if settings.train == "lora" else "full fine-tuning"
    ranks = f", {settings.ranks} ranks" if settings.ranks > 1 else ""
    clock = ", processor time" if settings.clock == "cpu" else ""
    return (
        f"{settings.shape}: {way}, {trainer}, batch {shape.batch} x {shape.length}, {settings.dtype}, "
        f"K={settings.tokens}{ranks}{clock}"
    )


def row(settings: Settings, name: str, kind: Kind) -> tuple[str, ...]:
    """One line of the table."""
    share = f"{settings.response_share:.0%}"
    if kind.out_of_memory:
        return (share, name, *["out of memory"] * (len(HEADINGS) - 2))
    ratio = kind.time_ratio
    return (
        share,
        name,
        f"{kind.seconds.median:.3f}",
        "1" if name == PLAIN else f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
        f"{kind.tokens_per_second:.0f}",
        "" if kind.peak_bytes is None else f"{kind.peak_bytes / 2**20:.0f}",
        "" if kind.memory_ratio is None else "1" if name == PLAIN else f"{kind.memory_ratio:.3f}",
        "" if kind.fill_share is None else f"{kind.fill_share:.0%}",
        "" if kind.run_ratio is None else "1" if name == PLAIN else f"{kind.run_ratio:.2f}",
    )


def rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """All lines."""
    return [row(settings, name, kind) for settings, kinds in runs for name, kind in kinds.items()]


def picture(runs: list[Run], machine: dict[str, Any], path: Path) -> None:
    """Ratios to the plain step as bars, those of time with their quartiles, and the plain run as a line at 1."""
    figure = Figure(figsize=(max(7.0, 1.5 * len(runs[0][1]) + 1), 0.8 + 2.8 * len(runs)), dpi=150)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
    top = max(_highest(kinds) for _, kinds in runs)
    for axes, (settings, kinds) in zip(panels, runs, strict=True):
        shown = {n: k for n, k in kinds.items() if n != PLAIN and not k.out_of_memory}
        places = list(range(len(shown)))
        times = [kind.time_ratio for kind in shown.values()]
        spread = [[t.median - t.low for t in times], [t.high - t.median for t in times]]
        medians = [t.median for t in times]
        memory = [kind.memory_ratio or 0.0 for kind in shown.values()]
        for offset, heights, label, colour in (
            (-0.2, medians, "time", TIME),
            (0.2, memory, "memory", MEMORY),
        ):
            if not any(heights):
                continue
            bars = axes.bar([p + offset for p in places], heights, 0.36, label=label, color=colour)
            labels = [f"{h:.2f}" if h else "" for h in heights]
            axes.bar_label(bars, labels, label_type="center", fontsize=10, color="white", fontweight="bold")
        axes.errorbar([p - 0.2 for p in places], medians, spread, fmt="none", ecolor="#333333", capsize=3)
        axes.axhline(1, color=FRAME, linewidth=1.2, linestyle="--", label="plain")
        axes.set_xticks(places, labels=list(shown), fontsize=9)
        axes.set_ylim(0, 1.15 * top)
        axes.set_ylabel("ratio to plain")
        axes.set_title(f"{settings.response_share:.0%} of the tokens are response", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title(runs[0][0])}\n{machine_line(machine)}", fontsize=10, x=0.01, ha="left")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def _highest(kinds: dict[str, Kind]) -> float:
    times = [k.time_ratio.high for k in kinds.values() if not k.out_of_memory]
    return max([*times, *(k.memory_ratio for k in kinds.values() if k.memory_ratio), 1.0])


def machine_line(machine: dict[str, Any]) -> str:
    """Processor or accelerator, and whether others were computing."""
    busy = f", shared (load {machine['load_at_start']})" if machine["busy"] else ""
    where = machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{where}, torch {machine['versions']['torch']}{busy}"
