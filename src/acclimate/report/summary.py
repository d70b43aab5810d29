"""What the results say together: gain in the domain, loss outside it, who is on the Pareto front, one sentence.

Gains and losses are against the base on the same items and always count in the direction of better: a gain of 0.1 bits per byte
means 0.1 fewer bits.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from .numbers import digits, interval, number, unit

PREFERRED = ("bits_per_byte", "accuracy", "macro_f1", "perplexity")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, None where it is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """+1 or -1 where the value is clearly off zero (without an interval: where it is not zero), else 0."""
        low, high = (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)
        return (low > 0) - (high < 0)

    def __neg__(self) -> "Estimate":
        return Estimate(-self.value, None if self.high is None else -self.high, None if self.low is None else -self.low)

    def __str__(self) -> str:
        places = digits(self.low, self.high)
        return f"{number(self.value, places, sign=True)} {interval(self.low, self.high, places)}".strip()


def add(estimates: list[Estimate], weights: list[float] | None = None) -> Estimate:
    """Weighted sum (by default the mean) of independent estimates.

    The distances to the ends of the intervals add in squares, each side on its own (the "method of variance estimates recovery", Zou &
    Donner 2008, "Construction of confidence limits about effect measures"), so that one estimate keeps its interval.

    >>> print(add([Estimate(0.4, 0.1, 0.8), Estimate(0.2, -0.2, 0.5)]))
    +0.30 [0.05, 0.55]
    """
    weights = weights or [1 / len(estimates)] * len(estimates)
    scaled = [(e, w) if w >= 0 else (-e, -w) for e, w in zip(estimates, weights, strict=True)]
    value = sum(w * e.value for e, w in scaled)
    known = [(w * (e.value - e.low), w * (e.high - e.value)) for e, w in scaled if e.low is not None and e.high is not None]
    if len(known) < len(scaled):
        return Estimate(value)
    down, up = (math.hypot(*distances) for distances in zip(*known, strict=True))
    return Estimate(value, value - down, value + up)


@dataclass
class Standing:
    """One model's place: gain in the domain and loss outside it, each a mean over the sets of its side."""

    model: str
    gain: Estimate | None = None
    loss: Estimate | None = None
    net: Estimate | None = None  # what the ranking goes by
    cost: float | None = None
    front: bool = False


@dataclass
class Side:
    """The sets of one role that all models share, and the metric they are compared by."""

    metric: str = ""
    domains: list[str] = field(default_factory=list)
    base: float | None = None  # the base's mean value

    @property
    def unit(self) -> str:
        """The metric in words."""
        return unit(self.metric)

    @property
    def sets(self) -> str:
        """The sets in words."""
        if len(self.domains) > 3:
            return f"{len(self.domains)} sets (mean)"
        return " and ".join(self.domains) + (" (mean)" if len(self.domains) > 1 else "")


@dataclass
class Summary:
    """The whole answer, ready to be drawn."""

    base: str
    gain: Side
    loss: Side
    standings: list[Standing]  # best first
    cost_name: str
    headline: str = ""
    remark: str = ""

    @property
    def best(self) -> Standing | None:
        """The model with the best trade-off."""
        return self.standings[0] if self.standings else None


def gain_of(result: dict[str, Any], results: list[dict[str, Any]], base: str) -> Estimate | None:
    """How much better than the base one result is; None for the base itself and where the base was not measured."""
    if result["model"] == base or result["value"] is None:
        return None
    change, low, high = (result.get(key) for key in ("change", "change_low", "change_high"))
    if change is None:
        same = [
            other["value"]
            for other in results
            if other["model"] == base and (other["domain"], other["metric"]) == (result["domain"], result["metric"])
        ]
        if not same or same[0] is None:
            return None
        change, low, high = result["value"] - same[0], None, None
    estimate = Estimate(change, low, high)
    return estimate if result.get("better", "lower") == "higher" else -estimate


def models_of(data: dict[str, Any]) -> list[str]:
    """Every model named anywhere that is measured or costed, base first."""
    names = [*data["models"], *(result["model"] for result in data["results"])]
    return sorted(dict.fromkeys(names), key=lambda name: name != data["base"])


def summarise(data: dict[str, Any]) -> Summary:
    """Rank the models by gain minus loss and say it in one sentence; ``data`` is checked (data.py)."""
    base, results = data["base"], data["results"]
    gains = {(r["model"], r["domain"], r["metric"]): gain_of(r, results, base) for r in results}
    known = {key: value for key, value in gains.items() if value is not None}
    sides = {role: _sides(data, known, role) for role in ("in", "out")}
    shared = [metric for metric in _ranked(sides["in"]) if metric in sides["out"]]
    gain, loss = (_side(data, sides[role], shared[:1] or _ranked(sides[role])[:1]) for role in ("in", "out"))
    cost = next((key for key in ("flops", "seconds", "tokens") if any(m.get(key) for m in data["models"].values())), "")
    standings = []
    for model in models_of(data):
        mine = [[known[model, d, side.metric] for d in side.domains if (model, d, side.metric) in known] for side in (gain, loss)]
        if any(mine):
            in_gain, out_gain = (add(estimates) if estimates else None for estimates in mine)
            standing = Standing(model, in_gain, -out_gain if out_gain else None, cost=data["models"].get(model, {}).get(cost))
            standing.net = _net(standing, gain, loss)
            standings.append(standing)
    standings.sort(key=lambda s: -s.net.value if s.net else math.inf)
    for standing in standings:
        standing.front = not any(_dominates(other, standing) for other in [*standings, Standing(base, Estimate(0), Estimate(0))])
    summary = Summary(base, gain, loss, standings, cost)
    summary.headline, summary.remark = _sentence(data, summary), _remark(summary)
    return summary


def _sides(data: dict, known: dict, role: str) -> dict[str, list[str]]:
    """Per metric the sets of one role on which every model has a gain."""
    measured = {key for key in known if data["domains"][key[1]]["role"] == role}
    models = {model for model, _, _ in known}
    found: dict[str, list[str]] = {}
    for metric in dict.fromkeys(key[2] for key in known):
        shared = [d for d in data["domains"] if all((model, d, metric) in measured for model in models)]
        if shared:
            found[metric] = shared
    return found


def _ranked(metrics: dict[str, list[str]]) -> list[str]:
    return sorted(metrics, key=lambda m: (PREFERRED.index(m) if m in PREFERRED else len(PREFERRED), m))


def _side(data: dict, metrics: dict[str, list[str]], chosen: list[str]) -> Side:
    if not chosen or chosen[0] not in metrics:
        return Side()
    metric, domains = chosen[0], metrics[chosen[0]]
    rows = [r for r in data["results"] if r["model"] == data["base"] and r["metric"] == metric and r["domain"] in domains]
    values = [r["value"] for r in rows if r["value"] is not None]
    return Side(metric, domains, sum(values) / len(values) if len(values) == len(domains) else None)


def _net(standing: Standing, gain: Side, loss: Side) -> Estimate | None:
    """Gain minus loss; in different units, each as a share of the base's value; with one side only, that side."""
    if standing.gain is None or standing.loss is None:
        return standing.gain or (-standing.loss if standing.loss else None)
    if gain.metric == loss.metric:
        return add([standing.gain, standing.loss], [1, -1])
    if not gain.base or not loss.base:
        return standing.gain
    return add([standing.gain, standing.loss], [1 / abs(gain.base), -1 / abs(loss.base)])


def _dominates(other: Standing, one: Standing) -> bool:
    """Whether the other gains at least as much, loses at most as much, and is better in one of the two."""
    if other is one or one.gain is None or one.loss is None or other.gain is None or other.loss is None:
        return False
    ahead = other.gain.value - one.gain.value, one.loss.value - other.loss.value
    return min(ahead) >= 0 and max(ahead) > 0


def _phrase(better: Estimate, where: str, what: str = "") -> str:
    """A verb, a size, a place and an interval: "gains 0.86 bits per byte in law [0.80, 0.92]"."""
    places = digits(better.low, better.high)
    what = f" {what}" if what else ""
    if not better.sign:
        return (
            f"shows no clear change {where} ({number(better.value, places, sign=True)}{what} {interval(better.low, better.high, places)})"
        )
    size = better if better.sign > 0 else -better
    verb = "gains" if better.sign > 0 else "loses"
    return f"{verb} {number(size.value, places)}{what} {where} {interval(size.low, size.high, places)}".strip()


def _sentence(data: dict, summary: Summary) -> str:
    best = summary.best
    if best is None:
        base = [r for r in data["results"] if r["model"] == data["base"] and r["value"] is not None]
        first = next((r for r in base if data["domains"][r["domain"]]["role"] == "in"), base[0] if base else None)
        if first:
            ends = interval(first.get("low"), first.get("high"), digits(first.get("low"), first.get("high")))
            value = number(first["value"], digits(first.get("low"), first.get("high")))
            return (
                f"'{data['base']}' stands at {value} {unit(first['metric'])} in {first['domain']} {ends}".strip()
                + "; nothing is compared with it."
            )
        return "The models share no set on which they could be compared." if data["results"] else "Nothing was measured."
    parts = []
    if best.gain:
        parts.append(_phrase(best.gain, f"in {summary.gain.sets}", summary.gain.unit))
    if best.loss:
        what = summary.loss.unit if summary.loss.metric != summary.gain.metric else ""
        parts.append(_phrase(-best.loss, "outside", what))
    sentence = f"'{best.model}' " + " and ".join(parts)
    rivals = len(summary.standings)
    rule = "trade-off" if best.gain and best.loss else "gain" if best.gain else "loss"
    if best.gain and best.net and best.net.value <= 0:
        sentence += (
            f"; the base '{summary.base}' is the better choice"
            if rivals == 1
            else f"; none of {rivals} models beats the base '{summary.base}'"
        )
    elif rivals > 1:
        sentence += f"; {'smallest' if rule == 'loss' else 'largest' if rule == 'gain' else 'best'} {rule} of {rivals} models"
    if not best.loss:
        sentence += "; what it lost outside was not measured"
    if not best.gain:
        sentence += "; what it gained in its domain was not measured"
    return sentence + "."


def _remark(summary: Summary) -> str:
    """How the ranking was made and how far it can be trusted."""
    if len(summary.standings) < 2:
        return ""
    best, second = summary.standings[:2]
    if not (best.gain and best.loss):
        rule = "Ranked by the one side that was measured."
    elif summary.gain.metric == summary.loss.metric:
        rule = "Ranked by gain minus loss."
    elif summary.gain.base and summary.loss.base:
        rule = "Ranked by gain minus loss, each as a share of the base's value because their units differ."
    else:
        rule = "Ranked by gain: the units of gain and loss differ and the base's values are unknown."
    if best.net and second.net and best.net.low is not None and second.net.high is not None and second.net.high > best.net.low:
        rule += f" The lead over '{second.model}' lies within the intervals: on these items alone the two cannot be told apart."
    return rule
