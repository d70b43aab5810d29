"""Plots for the pages under docs: each is the text of an SVG file that stands alone, light, on a white ground."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .drawing import ACCENT, COLOURS, INK, LINE, MUTED, WORSE, new_figure, styled, svg_of

STYLE = (Path(__file__).parent / "style.html").read_text(encoding="utf-8")
LIGHT = dict(re.findall(r"--(\w+): (#\w+);", STYLE.partition("@media")[0]))  # the page's own colours by name, those of the light look


@styled
def ranking(rows: Sequence[dict[str, Any]], axis: str) -> str:
    """Rows {name, value, half, each} from top to bottom: the value with its interval (half may be None), small dots for what it is of."""
    figure, axes = _rows([row["name"] for row in rows])
    for place, row in enumerate(rows):
        axes.scatter(row["each"], [place] * len(row["each"]), s=9, color=MUTED, alpha=0.45, linewidth=0, zorder=2)
        if row["half"] is not None:
            axes.plot(
                [row["value"] - row["half"], row["value"] + row["half"]], [place, place], color=ACCENT, linewidth=1.3, alpha=0.5, zorder=3
            )
        axes.scatter([row["value"]], [place], s=30, color=ACCENT, linewidth=0, zorder=4)
    seen = [value for row in rows for value in (row["value"], *row["each"])]
    room = 0.04 * (max(seen) - min(seen) or 1)
    axes.set_xlim(min(seen) - room, max(seen) + room)  # an interval may leave the picture: dots may not
    axes.set_xlabel(axis)
    return alone(svg_of(figure, "ranking"))


@styled
def against_goals(rows: Sequence[tuple[str, float, float, float, float]], axis: str) -> str:
    """Rows (name, median, least, most, goal) on a logarithmic axis: a bar to the median, a line over the rounds, a tick at the goal."""
    figure, axes = _rows([row[0] for row in rows])
    for place, (_, median, least, most, goal) in enumerate(rows):
        axes.barh(place, median - 0.5, left=0.5, height=0.55, color=ACCENT if median >= goal else WORSE, alpha=0.75, zorder=2)
        axes.plot([least, most], [place, place], color=INK, linewidth=1.1, zorder=3)
        axes.plot([goal, goal], [place - 0.38, place + 0.38], color=INK, linewidth=2, zorder=4)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 3, 5, 10, 20, 50]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.5, 1.15 * max(row[3] for row in rows))
    axes.set_xlabel(axis)
    return alone(svg_of(figure, "goals"))


@styled
def tradeoff(points: Sequence[tuple[str, float, float]], x: str, y: str, zero: bool = True) -> str:
    """Named points (name, x, y), with lines where either is 0 if ``zero``."""
    from .labels import label_points

    figure = new_figure(5.2)
    axes = figure.add_axes((0.085, 0.12, 0.895, 0.86))
    axes.scatter([point[1] for point in points], [point[2] for point in points], s=42, color=ACCENT, alpha=0.85, linewidth=0, zorder=3)
    for axis, values in ((axes.set_xlim, [p[1] for p in points]), (axes.set_ylim, [p[2] for p in points])):
        room = 0.1 * (max(values) - min(values) or 1)
        axis(min(values) - room, max(values) + room)
    if zero:
        axes.axhline(0, color=LINE, linewidth=1, zorder=0)
        axes.axvline(0, color=LINE, linewidth=1, zorder=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    label_points(figure, axes, [(px, py, 3.7, name) for name, px, py in points], [], [])
    return alone(svg_of(figure, "tradeoff"))


def alone(svg: str) -> str:
    """An ``<svg>`` element of :func:`acclimate.report.drawing.svg_of` as a file: named, coloured, on a ground."""
    for name in COLOURS:
        svg = svg.replace(f"var(--{name})", LIGHT[name])
    opening, rest = svg.split(">", 1)
    look = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    return f'{opening.replace("<svg", f"<svg {look}", 1)}><rect width="100%" height="100%" fill="{LIGHT["card"]}"/>{rest}\n'


def _rows(names: Sequence[str]) -> tuple[Any, Any]:
    """A figure with a line for each name, the first on top."""
    height = 0.21 * len(names) + 0.75
    figure = new_figure(height)
    left = 0.03 + 0.0075 * max(map(len, names))
    axes = figure.add_axes((left, 0.5 / height, 0.98 - left, 1 - 0.6 / height))
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return figure, axes
