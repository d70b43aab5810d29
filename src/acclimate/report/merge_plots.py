"""Plots of merges over the layers of the merged model, and of searches over trials; each an ``<svg>``, "" with nothing to draw."""

from collections.abc import Callable
from typing import Any

from ..parts.layer_groups import ROLES
from .drawing import ACCENT, CARD, COLOURS, INK, LINE, MUTED, SERIES, new_figure, short, styled, svg_of
from .numbers import count, number
from .plots import _room

TICKS = 16  # layers up to which every one gets a mark


@styled
def cosines(merge: dict[str, Any], name: str) -> str:
    """Cosine of the merged tensors to each parent's over the layers: a panel for each role, a line for each parent."""
    parents = [parent["name"] for parent in merge["parents"]]
    panels = [(role, rows) for role in ROLES if (rows := [row for row in merge["layers"] if row["role"] == role and row["cosine"]])]
    if not panels:
        return ""
    lines = -(-len(parents) // 5)
    height = 2.75 + 0.22 * lines
    figure = new_figure(height)
    top, left, gap = (0.3 + 0.22 * lines) / height, 0.062, 0.014
    width = (1 - left - gap * len(panels)) / len(panels)
    low, high = _room([value for _, rows in panels for row in rows for value in row["cosine"].values()], 0.06)
    shown: dict[str, Any] = {}
    for place, (role, rows) in enumerate(panels):
        axes = figure.add_axes((left + place * (width + gap), 0.5 / height, width, 1 - top - 0.5 / height))
        axes.set_ylim(low, high)
        _places(axes, merge, role == "embedding/head")
        axes.set_title(role, loc="left", pad=6)
        axes.locator_params(axis="y", steps=[1, 2, 5, 10])
        axes.yaxis.set_major_formatter(_plain_ticks(low, high))
        if place:
            axes.tick_params(axis="y", labelleft=False)
        for index, parent in enumerate(parents):
            line = _draw(axes, merge, [(row["x"], row["cosine"].get(parent)) for row in rows], *_look(index))
            shown.setdefault(parent, line)
    _legend(figure, {parent: line for parent, line in shown.items() if line is not None}, height)
    return svg_of(figure, name)


@styled
def changes(merge: dict[str, Any], name: str) -> str:
    """Size of the change (or of the weights) and share of changed weights over the layers: two panels, a line for each role."""
    rows = merge["layers"]
    key, title = (
        ("moved", "norm of the change over the base's")
        if any(row["moved"] is not None for row in rows)
        else ("rms", "root mean square weight")
    )
    height = 2.95
    figure = new_figure(height)
    shown: dict[str, Any] = {}
    for place, (what, words) in enumerate(((key, title), ("changed", "changed weights, %"))):
        values = [row[what] for row in rows if row[what] is not None]
        scale = 100 if what == "changed" else 1
        if not values:
            continue
        axes = figure.add_axes((0.062 + 0.5 * place, 0.5 / height, 0.43, 1 - 1.05 / height))
        low, high = (0.0, 100.0) if what == "changed" else (0.0, max(values) or 1.0)
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        _places(axes, merge)
        axes.set_title(words, loc="left", pad=6)
        for index, role in enumerate(ROLES):
            points = [(row["x"], row[what] if row[what] is None else scale * row[what]) for row in rows if row["role"] == role]
            line = _draw(axes, merge, points, *_look(index))
            shown.setdefault(role, line)
    _legend(figure, {role: line for role, line in shown.items() if line is not None}, height)
    return svg_of(figure, name)


@styled
def trials(search: dict[str, Any], name: str) -> str:
    """Scores of all trials, the best so far as a line, and start and winner on held-out text as diamonds; a front where there are two."""
    dots = [(number, score) for number, score in search["trials"] if score is not None]
    if not dots or not search["best"]:
        return ""
    height, points = 3.4, [pair for pair in search.get("points", []) if None not in pair]
    figure = new_figure(height)
    axes = figure.add_axes((0.07, 0.5 / height, 0.50 if points else 0.905, 1 - 0.92 / height))
    ends = [search["best"][0][1], search["best"][-1][1], *search["held_out"].values()] if search.get("held_out") else search["best"][0][1:]
    scores = sorted(score for _, score in dots)
    high = max(*ends, scores[min(len(scores) - 1, int(0.9 * len(scores)))], scores[0])
    axes.set_ylim(*_room([scores[0], high, *ends], 0.06))
    axes.set_xlim(*_room([1, search["count"]], 0.02))
    inside = [(x, y) for x, y in dots if y <= axes.get_ylim()[1]]
    axes.plot(
        *zip(*inside, strict=True), color=MUTED, marker="o", markersize=2.6, markeredgewidth=0, linestyle="", alpha=0.6, label="a trial"
    )
    steps = [*search["best"], [search["count"], search["best"][-1][1]]]
    axes.plot(*zip(*steps, strict=True), color=ACCENT, linewidth=1.7, drawstyle="steps-post", label="best so far")
    if search.get("held_out"):
        xs, ys = (1, search["best"][-1][0]), (search["held_out"]["start"], search["held_out"]["best"])
        look = {"color": COLOURS[SERIES[1]], "linestyle": (0, (1, 2.5)), "linewidth": 1.0, "marker": "D", "markersize": 6.5}
        axes.plot(xs, ys, markerfacecolor=CARD, label="held-out text: start and winner", clip_on=False, zorder=4, **look)
    axes.set_title("score of each trial" + (", mean of the metrics" if points else ""), loc="left", pad=6)
    axes.set_xlabel("trial")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: count(value) if value >= 1 else "")
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines, names, loc="upper right", ncols=3, frameon=False, labelcolor=INK, bbox_to_anchor=(0.985, 1 + 0.03 / height))
    if points:
        second = figure.add_axes((0.655, 0.5 / height, 0.32, 1 - 0.92 / height))
        second.plot(*zip(*points, strict=True), color=MUTED, marker="o", markersize=2.6, markeredgewidth=0, linestyle="", alpha=0.6)
        if search["front"]:
            second.plot(*zip(*search["front"], strict=True), color=ACCENT, marker="o", markersize=4, linewidth=1.2, drawstyle="steps-post")
        for axis, which in ((second.set_xlim, 0), (second.set_ylim, 1)):
            best = [pair[which] for pair in search["front"] or points]
            spread = sorted(pair[which] for pair in points)
            axis(*_room([*best, spread[int(0.9 * (len(spread) - 1))]], 0.08))
        second.set_title("two metrics, the front in blue", loc="left", pad=6)
        second.set_xlabel(short(search["metrics"][0]))
        second.set_ylabel(short(search["metrics"][1]))
    return svg_of(figure, name)


def outside(search: dict[str, Any]) -> int:
    """How many of the trials that are kept have no finite score."""
    return sum(score is None for _, score in search["trials"])


def _look(index: int) -> tuple[str, Any]:
    """Colour and dashes of the line of some number."""
    return COLOURS[SERIES[index % 8]], ["solid", (0, (5, 2)), (0, (1, 1.5))][index // 8 % 3]


def _draw(axes: Any, merge: dict[str, Any], points: list[tuple[int, float | None]], colour: str, dash: Any) -> Any:
    """A line over the layers, broken between stacks, diamonds for what stands before and behind them; the first thing drawn, or None."""
    total = sum(merge["stacks"].values())
    known = [(x, y) for x, y in points if y is not None]
    mark = {"color": colour, "markersize": 3, "markeredgewidth": 0, "clip_on": False}
    drawn, start = None, 0
    for length in merge["stacks"].values():
        part = [(x, y) for x, y in known if start <= x < start + length]
        start += length
        if part:
            (line,) = axes.plot(*zip(*part, strict=True), linewidth=1.6, linestyle=dash, marker="o" if length <= TICKS else "", **mark)
            drawn = drawn or line
    ends = [(x, y) for x, y in known if x < 0 or x >= total]
    if ends:
        (line,) = axes.plot(*zip(*ends, strict=True), linestyle="", marker="D", **{**mark, "markersize": 4.5})
        drawn = drawn or line
    return drawn


def _places(axes: Any, merge: dict[str, Any], ends_alone: bool = False) -> None:
    """The axis of layers: their numbers, the embedding before them, the head behind them."""
    total = sum(merge["stacks"].values())
    axes.set_xlim(-1.6, total + 0.6)
    if ends_alone or not total:
        axes.set_xticks([-1, total], ["embedding", "head"])
        axes.set_xlim(-1.6 - total / 4, total + 0.6 + total / 4)
        return
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100, 1000, 10**6) if total / step <= 9)
    axes.set_xticks(range(0, total, step))
    axes.set_xlabel("layer" if len(merge["stacks"]) == 1 else "layer, stack behind stack")
    start = 0
    for length in list(merge["stacks"].values())[:-1]:
        start += length
        axes.axvline(start - 0.5, color=LINE, linewidth=1)


def _plain_ticks(low: float, high: float) -> Callable[[float, Any], str]:
    """Tick labels with as many decimals as the axis needs, never as an offset."""
    decimals = next((places for places in range(2, 8) if high - low >= 10 ** (1 - places)), 8)
    return lambda value, _: number(value, decimals)


def _legend(figure: Any, lines: dict[str, Any], height: float) -> None:
    """Names of the lines in a row (or several) at the top."""
    if lines:
        names = [short(name, 24) for name in lines]
        figure.legend(
            list(lines.values()), names, loc="upper left", ncols=min(5, len(names)), frameon=False,
            bbox_to_anchor=(0.05, 1 + 0.05 / height),            labelcolor=INK, fontsize=9, handlelength=1.6, columnspacing=1.6,
        )  # fmt: skip
