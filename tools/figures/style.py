"""One style for every figure: colours of light and of dark pages, and axes that are read on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pact_plugin import PactConfig
from pact_plugin.audit.charts import COLOURS

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
FIELD = ROOT / "benchmarks" / "field" / "results" / "qwen-0.5b-bfloat16"
LIGHT = COLOURS | {"held": COLOURS["reference"], "yields": COLOURS["candidate"], "box": "#eef1f5"}
DARK = {
    **{"ink": "#e6eaf0", "muted": "#a3adba", "grid": "#3a414d", "box": "#2a303b", "paper": "#14171d"},
    **{"reference": "#6aa8e8", "candidate": "#ee8f5c", "held": "#6aa8e8", "yields": "#ee8f5c"},
}
OTHERS = ("#3c9d7b", "#b58a00", "#9b70c2", "#d2447e", "#3aa0a0", "#7b8794")
"""Of further methods: seen on light and on dark."""
Colours = dict[str, str]


def _style(colours: Colours) -> dict[str, Any]:
    return {
        **{"font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "pact-docs"},
        **{"font.sans-serif": ["system-ui", "DejaVu Sans"], "hatch.linewidth": 1.0, "axes.facecolor": "none"},
        **{
            "text.color": colours["ink"],
            "axes.labelcolor": colours["muted"],
            "axes.edgecolor": colours["muted"],
        },
        **{"xtick.color": colours["muted"], "ytick.color": colours["muted"]},
    }


def both(name: str, draw: Callable[[Figure, Colours], None], height: float) -> None:
    """Draw a figure for light and for dark pages."""
    for scheme, colours in (("light", LIGHT), ("dark", DARK)):
        with rc_context(_style(colours)):
            figure = Figure(figsize=(4.8, height))
            draw(figure, colours)
            # Light ones are legible on GitHub's dark pages, too.
            figure.savefig(
                IMAGES / f"{name}-{scheme}.svg", transparent=scheme == "dark", metadata={"Date": None}
            )


def plain_axes(axes: Axes, colours: Colours) -> None:
    """A light grid behind, and no frame but the two axes."""
    axes.grid(color=colours["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def legend_below(figure: Figure, axes: Axes) -> None:
    """What the marks mean, under the plot."""
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="lower left", bbox_to_anchor=(0.02, 0.0), frameon=False)


NAMES = {
    "aligned": "aligned model, before",
    "plain": "plain fine-tuning",
    f"pact@{PactConfig().weight:g}": "PACT",
    "two-anchors@3": "PACT, two anchors a step, weight 3",
    "sbr@50": "SBR, strength 50",
    "sbr+probe-8@50": "SBR, strength 50, with PACT's easing, eight a step",
    "replay-kl+easing@3": "full KL, strength 3, with easing",
    "replay-kl+probe@3": "full KL, strength 3, with PACT's easing",
    "replay-kl+probe@10": "full KL, strength 10, the same, eight a step",
    "benign-64@3": "PACT, benign_top_k 64",  # has no frontier
}
"""Of methods at a strength, as the benchmark calls them; those that are drawn."""
