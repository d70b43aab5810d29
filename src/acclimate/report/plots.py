"""The report's plots: gain against loss, change on each set, learning curves. Each is an ``<svg>`` element, "" with nothing to draw."""

import re
from collections.abc import Callable
from typing import Any

from .drawing import ACCENT, BETTER, CARD, COLOURS, INK, LINE, MUTED, SERIES, WIDTH, WORSE, new_figure, short, styled, svg_of
from .labels import label_lines, label_points
from .numbers import MINUS, count, duration, number, unit
from .summary import Estimate, Summary, gain_of, models_of

MAX_POINTS = 400  # of one learning curve


@styled
def pareto(data: dict[str, Any], summary: Summary) -> str:
    """Gain in the domain (x) against loss outside (y) with intervals; area of a point ~ cost; the front as a line; every point named."""
    points = [s for s in summary.standings if s.gain and s.loss]
    if not points:
        return ""
    figure = new_figure(4.9)
    axes = figure.add_axes((0.085, 0.125, 0.895, 0.85))
    places: list[tuple[float, float, float, str]] = []  # x, y, radius in points, name
    top = max((s.cost or 0 for s in points), default=0)
    spans = [(s.gain, s.loss) for s in points if s.gain and s.loss]
    for standing, (gain, loss) in zip(points, spans, strict=True):
        area = 40 + 460 * (standing.cost or 0) / top if top else 110
        colour = ACCENT if standing.front else MUTED
        for (xs, ys), known in (
            (((gain.low, gain.high), (loss.value, loss.value)), gain.low is not None),
            (((gain.value, gain.value), (loss.low, loss.high)), loss.low is not None),
        ):
            if known:
                axes.plot(xs, ys, color=colour, linewidth=1.3, alpha=0.55, zorder=2, solid_capstyle="butt")
        axes.scatter([gain.value], [loss.value], s=area, color=colour, alpha=0.85 if standing.front else 0.6, linewidth=0, zorder=3)
        places.append((gain.value, loss.value, (area / 3.14159) ** 0.5, short(standing.model)))
    if summary.base:
        axes.scatter([0], [0], s=60, marker="D", facecolor=CARD, edgecolor=INK, linewidth=1.2, zorder=3)
        places.append((0, 0, 6, f"{short(summary.base)} (base)"))
    front = sorted({(s.gain.value, s.loss.value) for s in points if s.front and s.gain and s.loss} | {(0.0, 0.0)})
    front = [p for p in front if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in front)]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=ACCENT, linewidth=1.2, linestyle=(0, (4, 3)), drawstyle="steps-pre", zorder=1)
    for axis, which in ((axes.set_xlim, 0), (axes.set_ylim, 1)):
        ends = [end for span in spans for end in (span[which].low, span[which].high, span[which].value) if end is not None]
        axis(*_room([*ends, 0.0], 0.1))
    axes.axhline(0, color=LINE, linewidth=1, zorder=0)
    axes.axvline(0, color=LINE, linewidth=1, zorder=0)
    axes.set_xlabel(f"gain in {_cut(summary.gain.sets, 50)}, {summary.gain.unit} (right is better)")
    axes.set_ylabel(f"loss outside, {summary.loss.unit} (down is better)")
    label_points(figure, axes, places, spans, front)
    return svg_of(figure, "pareto")


def area_means(summary: Summary) -> str:
    """What the area of a point stands for, in words; nothing where no cost is known."""
    costs = [s.cost for s in summary.standings if s.cost]
    if not costs or not summary.cost_name:
        return ""
    words: dict[str, Callable[[float], str]] = {
        "flops": lambda c: count(c, "FLOP"),
        "seconds": duration,
        "tokens": lambda c: f"{count(c)} tokens",
    }
    name = {"flops": "training FLOPs", "seconds": "training time", "tokens": "training tokens"}[summary.cost_name]
    return f"Area of a point: {name} (largest {words[summary.cost_name](max(costs))})."


@styled
def bars(data: dict[str, Any], metric: str) -> str:
    """Per set and model the gain over the base with its interval: trained-for sets on the left, watched sets on the right."""
    rows = {role: _bar_rows(data, metric, role) for role in ("in", "out")}
    panels = [role for role in ("in", "out") if rows[role]]
    if not panels:
        return ""
    longest = max(len(row) for row in rows.values())
    height = 0.27 * longest + 0.82
    figure = new_figure(height)
    names = [short(name, 22) for role in panels for name, _ in rows[role]]
    left = 0.02 + 0.0088 * max(map(len, names))
    width = (1 - len(panels) * (left + 0.075)) / len(panels)
    for place, role in enumerate(panels):
        tall = 0.27 * len(rows[role]) / height
        axes = figure.add_axes((left + place * (width + left + 0.075), 1 - 0.3 / height - tall, width, tall))
        ends = [end for _, gain in rows[role] if gain for end in (gain.value, gain.low, gain.high) if end is not None]
        axes.set_xlim(*_room([*ends, 0.0], 0.05))
        axes.set_ylim(len(rows[role]) - 0.4, -0.6)
        axes.axvline(0, color=MUTED, linewidth=1, zorder=3)
        ticks = []
        for row, (name, gain) in enumerate(rows[role]):
            if gain is None:  # a heading
                axes.annotate(
                    short(name, 22),
                    (0, row),
                    xycoords=("axes fraction", "data"),
                    xytext=(-72 * WIDTH * left + 8, 0),
                    textcoords="offset points",
                    va="center",
                    color=INK,
                    fontweight="bold",
                    annotation_clip=False,
                )
                continue
            ticks.append((row, short(name, 22)))
            colour = BETTER if gain.value >= 0 else WORSE
            axes.barh(row, gain.value, height=0.66, color=colour, alpha=0.85 if gain.sign else 0.35, linewidth=0)
            if gain.low is not None:
                axes.plot([gain.low, gain.high], [row, row], color=INK, linewidth=1.3, solid_capstyle="butt", zorder=4)
            axes.annotate(
                number(gain.value, 3, sign=True).replace("-", MINUS),
                (1, row),
                xycoords=("axes fraction", "data"),
                xytext=(46, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color=INK,
                annotation_clip=False,
            )
        axes.set_yticks([row for row, _ in ticks], [name for _, name in ticks])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{'in the domain' if role == 'in' else 'outside'}, {unit(metric)}", loc="left", x=-left / width, pad=6)
        axes.set_xlabel("gain over the base")
        axes.locator_params(axis="x", nbins=max(2, int(width * WIDTH / 0.55)))
    return svg_of(figure, "bars-" + re.sub(r"\W", "-", metric))


def _bar_rows(data: dict, metric: str, role: str) -> list[tuple[str, Estimate | None]]:
    """Headings (a set, None) and bars (a model, its gain), in order."""
    rows: list[tuple[str, Estimate | None]] = []
    for domain, facts in data["domains"].items():
        found = {
            r["model"]: gain_of(r, data["results"], data["base"]) for r in data["results"] if (r["domain"], r["metric"]) == (domain, metric)
        }
        gains = [(model, gain) for model in models_of(data) if (gain := found.get(model))]
        if facts["role"] == role and gains:
            rows += [(domain, None), *gains]
    return rows


@styled
def curves(data: dict[str, Any]) -> str:
    """Learning curves over tokens: the mean over the sets of each side, one panel each; else the training loss."""
    sides = {role: [name for name, facts in data["domains"].items() if facts["role"] == role] for role in ("in", "out")}
    titles = {"in": "in the domain, bits per byte", "out": "outside, bits per byte", "loss": "training loss"}
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {"in": {}, "out": {}, "loss": {}}
    axis = next((key for key in ("tokens", "step", "seconds") if all(_has(points, key) for points in data["curves"].values())), "")
    for model, points in data["curves"].items():
        for panel, keys in (*sides.items(), ("loss", ["loss"])):
            keys = [key for key in keys if any(point.get(key) is not None for point in points)]
            line = [
                (point[axis] if axis else float(index), sum(point[key] for key in keys) / len(keys))
                for index, point in enumerate(points)
                if keys and all(point.get(key) is not None for key in keys)
            ]
            if len(line) > 1:
                lines[panel][model] = sorted(_thin(line))
    panels = [name for name in ("in", "out") if lines[name]] or [name for name in ("loss",) if lines[name]]
    if not panels:
        return ""
    figure = new_figure(3.5)
    colour = {model: COLOURS[SERIES[index % 8]] for index, model in enumerate(data["curves"])}
    dash = {model: ["solid", (0, (5, 2)), (0, (1, 1.5))][index // 8 % 3] for index, model in enumerate(data["curves"])}
    label = 0.02 + 0.0088 * max(len(short(model, 18)) for model in data["curves"])
    width = 1 / len(panels) - 0.065 - label
    for place, panel in enumerate(panels):
        axes = figure.add_axes((0.065 + place / len(panels), 0.155, width, 0.735))
        for model, line in lines[panel].items():
            xs, ys = zip(*line, strict=True)
            axes.plot(
                xs,
                ys,
                color=colour[model],
                linestyle=dash[model],
                linewidth=1.6,
                marker="o" if len(xs) < 30 else "",
                markersize=3,
                clip_on=False,
            )
        axes.set_xlim(0 if axis else None, max(x for line in lines[panel].values() for x, _ in line))
        axes.set_ylim(*_room([y for line in lines[panel].values() for _, y in line], 0.06))
        axes.set_title(titles[panel], loc="left", pad=6)
        axes.set_xlabel({"tokens": "tokens trained on", "step": "optimizer steps", "seconds": "seconds", "": "measurement"}[axis])
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: count(value) if value else "0")
        label_lines(figure, axes, {model: line[-1] for model, line in lines[panel].items()}, colour)
    return svg_of(figure, "curves")


def _has(points: list[dict], key: str) -> bool:
    return all(point.get(key) is not None for point in points)


def _thin(line: list) -> list:
    """At most MAX_POINTS of a line, its ends among them."""
    if len(line) <= MAX_POINTS:
        return line
    return [line[round(index * (len(line) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def _room(ends: list[float], margin: float) -> tuple[float, float]:
    """Axis limits around the values, never of no width."""
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - max(abs(low) * 0.1, 0.01), high + max(abs(high) * 0.1, 0.01)
    return low - margin * (high - low), high + margin * (high - low)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
