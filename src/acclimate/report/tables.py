"""The tables of a report as text cells, for the page and for the terminal."""

from typing import Any

from .numbers import NONE, count, duration, interval, memory, number, p_value, percent, unit
from .summary import gain_of, models_of


def result_groups(data: dict) -> list[dict[str, Any]]:
    """The table of results: one group per set and metric, trained-for sets first, models in order, the best value marked."""
    groups = []
    order = {model: place for place, model in enumerate(models_of(data))}
    sets = sorted(data["domains"], key=lambda name: data["domains"][name]["role"] != "in")
    for domain in sets:
        for place, metric in enumerate(dict.fromkeys(r["metric"] for r in data["results"] if r["domain"] == domain)):
            results = [r for r in data["results"] if (r["domain"], r["metric"]) == (domain, metric)]
            lower = results[0].get("better", "lower") == "lower"
            values = [r["value"] for r in results if r["value"] is not None]
            top = (min if lower else max)(values) if values else None
            rows = []
            for result in sorted(results, key=lambda r: order[r["model"]]):
                gain = gain_of(result, data["results"], data["base"])
                share, low, high = flips_of(result)
                rows.append({
                    "model": result["model"],
                    "value": number(result["value"]),
                    "ends": interval(result.get("low"), result.get("high")),
                    "best": len(results) > 1 and result["value"] == top is not None,
                    "gain": number(gain.value, sign=True) if gain else NONE,
                    "gain_ends": interval(gain.low, gain.high) if gain else "",
                    "tone": {1: "better", -1: "worse", 0: ""}[gain.sign] if gain else "",
                    "perplexity": number(result.get("perplexity"), 2),
                    "p": p_value(result.get("p")),
                    "n": whole(result.get("n")),
                    "flips": percent(share),
                    "flips_ends": f"[{percent(low)}, {percent(high)}]" if low is not None and high is not None else "",
                })  # fmt: skip
            facts = data["domains"][domain]
            size = [count(facts["documents"]) + " documents"] if facts.get("documents") else []
            size += [memory(facts["bytes"])] if facts.get("bytes") else []
            size += [str(facts[key]) for key in ("source", "licence") if facts.get(key)]
            groups.append({
                "domain": domain, "role": "in the domain" if facts["role"] == "in" else "outside", "unit": unit(metric),
                "better": "lower is better" if lower else "higher is better", "facts": "" if place else ", ".join(size), "rows": rows,
            })  # fmt: skip
    return groups


def columns_of(data: dict) -> dict[str, bool]:
    """Which of the columns that a result may lack are there."""
    return {key: any(r.get(key) is not None for r in data["results"]) for key in ("perplexity", "p", "n", "flips")}


def cost_rows(data: dict) -> list[dict[str, str]]:
    """The table of costs, base first; empty where no model says what it cost."""
    rows = []
    for model in models_of(data):
        cost = data["models"].get(model) or {}
        trained, total = cost.get("trained_parameters"), cost.get("total_parameters")
        rows.append({
            "model": model, "how": cost.get("how") or "", "trained": count(trained), "total": count(total),
            "share": percent(trained / total) if trained is not None and total else NONE, "tokens": count(cost.get("tokens")),
            "time": duration(cost.get("seconds")), "flops": count(cost.get("flops"), "FLOP"),
            "memory": memory(cost.get("peak_memory_bytes")),
        })  # fmt: skip
    return rows if any(data["models"].values()) else []


def flips_of(result: dict) -> tuple[float | None, float | None, float | None]:
    """Negative flips as (share, low, high); a bare share has no interval."""
    flips = result.get("flips")
    if isinstance(flips, list):
        return (*flips, None, None)[:3]
    return flips, None, None


def whole(value: int | None) -> str:
    """A count in full, its thousands apart."""
    return NONE if value is None else f"{value:,}".replace(",", "\u00a0")


def aligned(rows: list[list[str]], left: int = 0) -> str:
    """Cells as text in columns, the first ``left`` of them flush left, the others flush right.

    >>> print(aligned([["a", "n"], ["bcd", "12"]], left=1))
    a    n
    bcd 12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(text: str, place: int) -> str:
        return text.ljust(widths[place]) if place < left else text.rjust(widths[place])

    return "\n".join(" ".join(cell(text, place) for place, text in enumerate(row)) for row in rows)
