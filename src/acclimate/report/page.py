"""The report as one HTML page that needs nothing else: text, tables and plots inside it, no request to anywhere."""

import re
from typing import Any

from . import merge_page, plots, tables
from .numbers import count, digits, duration, interval, memory, minus, number, percent, unit
from .summary import Estimate, Summary, models_of, summarise
from .templates import environment

# Where no item is right or wrong, a negative flip is a text that the model now predicts worse, or a query that it answers worse.
OF_TEXT = ("bits_per_byte", "perplexity", "mean_average_precision")
MAX_SAMPLES, MAX_SPANS, MAX_TEXT, MAX_RECIPE = 24, 50, 1500, 100_000  # what the page shows; report.json has everything


def page(data: dict[str, Any]) -> str:
    """The HTML of checked data (data.py); the same data gives the same text."""
    summary = summarise(data)
    metrics = list(dict.fromkeys(result["metric"] for result in data["results"]))
    drawn = ((metric, plots.bars(data, metric)) for metric in metrics)
    return (
        environment()
        .get_template("page.html")
        .render(
            title=data["title"] or "Acclimate report",
            data=data,
            created=re.sub(r"^(\d+-\d+-\d+)T(\d+:\d+).*?(?:\+00:00|Z)$", r"\1 \2 UTC", data["created"]),
            summary=summary,
            lead=minus(summary.headline),
            remark=minus(summary.remark),
            cards=_cards(data, summary),
            pareto=plots.pareto(data, summary),
            area=plots.area_means(summary),
            bars=[(unit(metric), svg) for metric, svg in drawn if svg],
            curves=plots.curves(data),
            groups=tables.result_groups(data),
            columns=tables.columns_of(data),
            costs=tables.cost_rows(data),
            merges=merge_page.shown_merges(data["merges"]),
            hidden_merges=max(0, len(data["merges"]) - merge_page.MAX_MERGES),
            searches=merge_page.shown_searches(data["searches"]),
            samples=_samples(data),
            hidden_samples=max(0, len(data["samples"]) - MAX_SAMPLES),
            contamination=_contamination(data),
            provenance=_flat(data["provenance"]),
            recipe=_clean(data["recipe"], MAX_RECIPE),
        )
    )


def _cards(data: dict, summary: Summary) -> list[dict[str, str]]:
    """The figures to decide by, of the best model: label, value, note, class."""
    best = summary.best
    cards: list[dict[str, str]] = []
    if best is None:
        return cards

    def put(label: str, value: str, note: str = "", tone: str = "") -> None:
        cards.append({"label": label, "value": minus(value), "note": minus(note), "tone": tone})

    def side(label: str, estimate: Estimate, what: str, better: int) -> None:
        places = digits(estimate.low, estimate.high)
        ends = interval(estimate.low, estimate.high, places)
        put(label, number(estimate.value, places), f"{what}\n{ends}".strip(), {1: "better", -1: "worse", 0: ""}[estimate.sign * better])

    if best.gain:
        side("gain in the domain", best.gain, summary.gain.unit, 1)
    if best.loss:
        side("loss outside", best.loss, summary.loss.unit, -1)
    flips = [(r, share) for r in data["results"] if r["model"] == best.model and (share := tables.flips_of(r)[0]) is not None]
    answers = [share for r, share in flips if r["metric"] not in OF_TEXT]
    texts = [share for r, share in flips if r["metric"] in OF_TEXT and data["domains"][r["domain"]]["role"] == "out"]
    if answers:
        put("negative flips", percent(max(answers)), "right before, wrong now" + ("; worst set" if len(answers) > 1 else ""))
    elif texts:
        put("texts worse", percent(max(texts)), "outside" + ("; worst set" if len(texts) > 1 else ""))
    cost = data["models"].get(best.model, {})
    work = [f"{count(cost['tokens'])} tokens"] if cost.get("tokens") is not None else []
    work += [count(cost["flops"], "FLOP")] if cost.get("flops") is not None else []
    if cost.get("seconds") is not None:
        put("training time", duration(cost["seconds"]), "\n".join(work))
    elif work:
        put("training", *work)
    if cost.get("trained_parameters") is not None:
        share = cost["trained_parameters"] / cost["total_parameters"] if cost.get("total_parameters") else None
        put(
            "trained weights",
            count(cost["trained_parameters"]),
            f"{percent(share)} of {count(cost['total_parameters'])}" if share is not None else "",
        )
    if cost.get("peak_memory_bytes") is not None:
        put("peak memory", memory(cost["peak_memory_bytes"]))
    return cards


def _samples(data: dict) -> list[dict[str, Any]]:
    order = {model: place for place, model in enumerate(models_of(data))}
    return [
        {
            "domain": sample.get("domain", ""),
            "prompt": _clean(sample.get("prompt"), MAX_TEXT),
            "texts": [
                (model, model == data["base"], _clean(text, MAX_TEXT))
                for model, text in sorted((sample.get("texts") or {}).items(), key=lambda pair: order.get(pair[0], len(order)))
            ],
        }
        for sample in data["samples"][:MAX_SAMPLES]
    ]


def _contamination(data: dict) -> Any:
    """What the page says of contamination; nothing where no document was checked."""
    found = data["contamination"]
    spans = found.get("spans") or []
    return (found.get("checked") or spans) and {
        "checked": tables.whole(found.get("checked")),
        "removed": tables.whole(found.get("removed")),
        "share": percent(found["removed"] / found["checked"]) if found.get("checked") and found.get("removed") is not None else "",
        "spans": [{**span, "text": _clean(span.get("text"), 300)} for span in spans[:MAX_SPANS]],
        "hidden": max(0, len(spans) - MAX_SPANS),
    }


def _flat(tree: dict, above: str = "") -> list[tuple[str, str]]:
    """A tree of facts as rows: ("models / replay", hash)."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{above} / {key}" if above else str(key)
        if isinstance(value, dict):
            rows += _flat(value, name)
        elif value is not None and value != "":
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _clean(text: Any, longest: int) -> str:
    """Text that a page can show: what is too long is cut."""
    text = str(text or "")
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest} more characters in report.json)"
