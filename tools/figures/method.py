"""The method in one figure: what is free, what yields and what is held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tools.figures.style import Colours


def method(figure: Figure, colours: Colours) -> None:
    """What is free, what yields and what is held: one row of tokens for each, and the buckets of the divergence."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 48)
    axes.set_ylim(58, 0)
    axes.text(1, 2.2, "Your data", fontsize=12, fontweight="bold", va="center")
    _row(axes, colours, 4.5, "a benign request", ["free"] * 7)
    _note(axes, colours, 10.6, "muted", "Free: cross-entropy on every token.")
    _row(axes, colours, 13.5, "a harmful request", ["yields"] * 4 + ["free"] * 3)
    _note(axes, colours, 19.6, "yields", "Yields: the first 16 tokens of a compliant")
    _note(axes, colours, 21.9, "yields", "answer are left out of the cross-entropy.")
    axes.plot([1, 47], [24.6, 24.6], color=colours["grid"], linewidth=1)
    axes.text(
        1, 27.2, "Anchors: the aligned model's own answers", fontsize=12, fontweight="bold", va="center"
    )
    _row(axes, colours, 29.5, "a prompt of the pool", ["held"] * 4)
    _note(axes, colours, 35.6, "held", "Held: at the first 16 tokens, these")
    _note(axes, colours, 37.9, "held", "probabilities keep to the aligned model's:")
    _buckets(axes, colours, 52.6)


def _box(axes: Axes, x: float, y: float, width: float, **style: Any) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, 4, boxstyle="round,pad=0,rounding_size=0.6", **style))


def _row(axes: Axes, colours: Colours, y: float, prompt: str, tokens: Sequence[str]) -> None:
    _box(axes, 1, y, 19, facecolor=colours["box"], edgecolor="none")
    axes.text(10.5, y + 2, prompt, ha="center", va="center", color=colours["muted"], fontsize=10)
    for index, kind in enumerate(tokens):
        x = 21.2 + 3.75 * index
        if kind == "free":
            _box(axes, x, y, 3.2, facecolor="none", edgecolor=colours["muted"], linewidth=1.2)
        elif kind == "yields":
            _box(axes, x, y, 3.2, facecolor="none", edgecolor=colours["yields"], hatch="////", linewidth=1.2)
        else:
            _box(axes, x, y, 3.2, facecolor=colours["held"], edgecolor=colours["held"], linewidth=1.2)


def _note(axes: Axes, colours: Colours, y: float, colour: str, text: str) -> None:
    axes.text(1, y, text, va="center", color=colours[colour], fontsize=10.5)


def _buckets(axes: Axes, colours: Colours, base: float) -> None:
    heights = {"I": 6.5, "Sorry": 4.2, "cannot": 2.2, "…": 1.0}
    for index, (token, height) in enumerate(heights.items()):
        x = 3.2 + 4.6 * index
        axes.bar(x, -height, 3.2, bottom=base, color=colours["held"])
        axes.text(x, base + 1.7, token, ha="center", va="center", fontsize=9.5)
    for index, height in enumerate((5.6, 3.4, 2.6, 1.2)):
        axes.bar(22.2 + 2.7 * index, -height, 1.9, bottom=base, color=colours["held"], alpha=0.55)
    axes.bar(40, -9.5, 14, bottom=base, color=colours["box"], edgecolor=colours["held"], linewidth=1.2)
    for index, height in enumerate((1.6, 0.9, 1.3, 0.6)):
        axes.bar(35.5 + 3.0 * index, -height, 1.5, bottom=base, color=colours["muted"], alpha=0.55)
    small: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5}
    axes.text(40, base - 8.0, "free among", color=colours["muted"], **small)
    axes.text(40, base - 6.0, "themselves", color=colours["muted"], **small)
    axes.text(26.2, base + 1.7, "64 likeliest others", **small)
    axes.text(26.2, base + 3.9, "(harmful prompts alone)", color=colours["muted"], **small)
    axes.text(41, base + 1.7, "the rest", **small)
    axes.text(10, base - 11, "K safety tokens", color=colours["muted"], **small)
