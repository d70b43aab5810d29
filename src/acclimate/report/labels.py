"""Names placed beside points and lines so that they do not cover each other."""

import math
from itertools import pairwise
from typing import Any

from .drawing import INK, MUTED, WIDTH, short
from .summary import Estimate


def label_lines(figure: Any, axes: Any, ends: dict[str, tuple[float, float]], colour: dict[str, str]) -> None:
    """Names at the right ends of lines, moved apart where they would touch."""
    low, high = axes.get_ylim()
    height = axes.get_position().height * figure.get_figheight() * 72  # points
    width = axes.get_position().width * WIDTH * 72
    step = (high - low) * min(11.5 / height, 1 / max(1, len(ends)))
    order = sorted(ends, key=lambda model: ends[model][1])
    at = [ends[model][1] for model in order]
    for _ in range(100):  # push neighbours apart, a little at a time, inside the axes
        for index in range(len(at) - 1):
            lack = step - (at[index + 1] - at[index])
            if lack > 1e-9:
                at[index] -= lack / 2
                at[index + 1] += lack / 2
        at = [min(max(y, low + (index + 0.5) * step), high - (len(at) - 1 - index) * step) for index, y in enumerate(at)]
    for model, y in zip(order, at, strict=True):
        axes.annotate(
            short(model, 18),
            ends[model],
            xytext=(1 + 8 / width, y),
            textcoords=("axes fraction", "data"),
            va="center",
            color=colour[model],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour[model],
                "linewidth": 0.8,
                "linestyle": (0, (1, 2.5)),
                "relpos": (0, 0.5),
                "shrinkA": 3,
                "shrinkB": 0,
            },
        )


def label_points(
    figure: Any,
    axes: Any,
    places: list[tuple[float, float, float, str]],
    spans: list[tuple[Estimate, Estimate]],
    front: list[tuple[float, float]],
) -> None:
    """A name beside each point, where it covers least: other names, points, intervals, the frame (greedy, fixed order)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    scale = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    dots = [(*axes.transData.transform((x, y)), radius * scale, name) for x, y, radius, name in places]
    taken = [(x - r, y - r, x + r, y + r, 6.0) for x, y, r, _ in dots]  # left, bottom, right, top, how bad it is to cover it
    lines: list = [((gain.low, loss.value), (gain.high, loss.value)) for gain, loss in spans]
    lines += [((gain.value, loss.low), (gain.value, loss.high)) for gain, loss in spans]
    for (x0, y0), (x1, y1) in pairwise(front):
        lines += [((x0, y0), (x0, y1)), ((x0, y1), (x1, y1))]
    for ends in lines:
        if None not in ends[0]:
            corners = axes.transData.transform(ends)
            taken.append((*(corners.min(axis=0) - 1), *(corners.max(axis=0) + 1), 3.0))
    for (x, y, _, _), (px, py, r, name) in sorted(zip(places, dots, strict=True), key=lambda both: (both[1][0], both[1][1])):
        text = axes.text(0, 0, name)
        box = text.get_window_extent(renderer)
        text.remove()
        best: tuple[float, Any] | None = None
        for far in (5, 14, 26, 40, 58, 80):
            if best and best[0] <= far * 2:
                break  # farther away cannot be better
            for dx, dy in ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1)):
                reach = (r + far * scale) * (0.75 if dx and dy else 1)
                cx, cy = px + dx * (reach + box.width / 2), py + dy * (reach + box.height / 2)
                here = (cx - box.width / 2 - 2, cy - box.height / 2 - 1, cx + box.width / 2 + 2, cy + box.height / 2 + 1)
                leader = _leader((px, py), (cx - dx * box.width / 2, cy - dy * box.height / 2)) if far > 5 else []
                cost = _covered([here, *leader], taken) + far * 2
                outside = max(0, frame.x0 - here[0]) + max(0, here[2] - frame.x1) + max(0, frame.y0 - here[1]) + max(0, here[3] - frame.y1)
                cost += 1000 * outside
                if not leader:  # a name must not look like another point's
                    own = _gap(here, px, py, r)
                    cost += 30 * sum(_gap(here, *other[:3]) <= own + 2 for other in dots) - 30
                if best is None or cost < best[0]:
                    best = (cost, (cx, cy, dx, dy, here, leader))
        assert best
        cx, cy, dx, dy, here, leader = best[1]
        taken += [(*part, 12.0) for part in (here, *leader)]
        line = {
            "arrowstyle": "-",
            "color": MUTED,
            "linewidth": 0.7,
            "relpos": ((1 - dx) / 2, (1 - dy) / 2),
            "shrinkA": 1,
            "shrinkB": r / scale,
        }
        offset = (cx - px) / scale, (cy - py) / scale
        look = {"ha": "center", "va": "center", "color": INK, "zorder": 5}
        axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", arrowprops=line if leader else None, **look)


def _leader(start: tuple[float, float], end: tuple[float, float]) -> list[tuple]:
    """Small boxes along the line from a point to its name."""
    steps = [(start[0] + (end[0] - start[0]) * part / 12, start[1] + (end[1] - start[1]) * part / 12) for part in range(3, 12)]
    return [(x - 1.5, y - 1.5, x + 1.5, y + 1.5) for x, y in steps]


def _gap(box: tuple, x: float, y: float, r: float) -> float:
    """The distance from a box to the edge of a point, below zero where they meet."""
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3])) - r


def _covered(parts: list[tuple], taken: list[tuple]) -> float:
    """How much of what is taken the parts would cover: shared areas times weights."""
    import numpy as np

    a, b = np.array(parts)[:, None], np.array(taken)[None]  # [part, 1, 4], [1, taken, 5]
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    return float((np.clip(width, 0, None) * np.clip(height, 0, None) * b[..., 4]).sum())
