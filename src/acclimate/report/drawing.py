"""The look of the report's plots, drawn with matplotlib's ``Figure`` alone (no pyplot, no state that outlives a drawing).

Colours are stand-ins (#000101 ...) that become the page's CSS variables in the finished SVG, so that plots follow light and dark. Text
stays text in the page's own font. The same data gives the same bytes.
"""

import io
import re
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

WIDTH = 10.2  # inches: at the page's full width one point of type is then about 1.4 CSS pixels
NAMES = ["ink", "muted", "line", "card", "better", "worse", "accent"]
SERIES = [f"s{number}" for number in range(8)]
COLOURS = {name: f"#0{index // 10}0{index % 10}0{index % 10}" for index, name in enumerate([*NAMES, *SERIES], start=1)}
INK, MUTED, LINE, CARD, BETTER, WORSE, ACCENT = (COLOURS[name] for name in NAMES)

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "acclimate",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is a name
}


def short(name: str, longest: int = 26) -> str:
    """A name for a plot, its middle cut out if it is long; tables show it whole.

    >>> short("qwen2.5-0.5b-lora-rank16-replay0.25")
    'qwen2.5-0.5b-…6-replay0.25'
    """
    return name if len(name) <= longest else name[: longest // 2] + "…" + name[-(longest - longest // 2 - 1) :]


def styled(draw: Callable[..., str]) -> Callable[..., str]:
    """Draw with our style, whatever the user's matplotlibrc says, and without complaints that the measuring font lacks a letter."""

    @wraps(draw)
    def drawn(*args: Any, **named: Any) -> str:
        from matplotlib.style import context

        with context(["default", STYLE]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")
            return draw(*args, **named)

    return drawn


def new_figure(height: float) -> Any:
    """A blank figure of the page's width; height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), facecolor="none")


def svg_of(figure: Any, name: str) -> str:
    """The figure as an ``<svg>`` element that may stand in any page: own ids, CSS colours, no fonts, no outside names."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL).strip()
    svg = re.sub(r'\s(?:xmlns(?::\w+)?)="[^"]*"', "", svg.replace("xlink:href", "href"))
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'\b(?:d|x|y|transform)="[^"]+"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)  # hundredths of a point
    opening, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", opening) + ">" + rest  # the page sets the size; the viewBox keeps the shape
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    return svg
