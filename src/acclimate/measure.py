"""Measures models on domains: bits per byte and tasks, each against the first model, item by item."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .domain import Domain
from .progress import say
from .runs import now, provenance

if TYPE_CHECKING:
    from .model import Model


def evaluate(
    models: list[str],
    domains: dict[str, Any],
    *,
    outside: dict[str, Any] | None = None,
    split: str = "test",
    most: int = 150_000,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Measure models (the first is the one others are compared with) on domains given as name -> source (or Domain).

    ``outside`` names what a specialist should not lose. Writes a report if ``out``.
    """
    from . import report
    from .model import Model

    loaded = {name: Model.load(name) for name in models}
    roles = {**dict.fromkeys(outside or {}, "out"), **dict.fromkeys(domains, "in")}
    opened = {n: spec if isinstance(spec, Domain) else Domain.load(n, spec) for n, spec in {**domains, **(outside or {})}.items()}
    results, counts = measure_all(loaded, opened, roles, split, most)
    data = {
        "title": "evaluation",
        "created": now(),
        "base": models[0],
        "command": " ".join(["acclimate", *sys.argv[1:]]),
        "recipe": "",
        "models": {name: {"how": "as given", "total_parameters": model.parameters()} for name, model in loaded.items()},
        "domains": counts,
        "results": results,
        "curves": {},
        "samples": [],
        "contamination": {"checked": 0, "removed": 0, "spans": []},
        "provenance": {**provenance(0), **hashes(loaded, opened)},
    }
    if out:
        say(f"report: {report.write(data, Path(out))}")
    return data


def measure_all(
    models: "dict[str, Model]", domains: dict[str, Domain], roles: dict[str, str], split: str, most: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every model on every domain: the result rows, and what each domain held."""
    results, counts = [], {}
    for name, domain in domains.items():
        some = limited(domain, split, most)
        size = sum(len(text.encode()) for text in some)
        counts[name] = {"role": roles[name], "documents": len(some), "bytes": size, "source": domain.source, "licence": domain.licence}
        results += measure(models, domain, some)
    return results, counts


def hashes(models: "dict[str, Model]", domains: dict[str, Domain]) -> dict[str, Any]:
    """Hashes of weights and texts, for the report."""
    return {"models": {n: m.fingerprint for n, m in models.items()}, "domains": {n: d.fingerprint for n, d in domains.items()}}


def measure(models: "dict[str, Model]", domain: Domain, texts: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Every model on one domain's held-out texts and tasks; the first model is the one others are compared with, item by item."""
    from .engines import score
    from .parts import statistics

    rows: list[dict[str, Any]] = []
    base: dict[str, Any] = {}
    for name, model in models.items():
        if texts and model.kind in ("causal", "masked"):
            bits = score.bits_per_byte(model, texts, what=f"{name} on {domain.name}")
            value, low, high = bits.interval()
            row = {
                "model": name,
                "domain": domain.name,
                "metric": "bits_per_byte",
                "better": "lower",
                "value": value,
                "low": low,
                "high": high,
                "n": len(texts),
            }
            change = dict.fromkeys(("change", "change_low", "change_high", "p", "flips"))
            first = base.setdefault("bits", bits)
            if first is not bits:
                gap = statistics.paired_difference(first.bits, first.bytes, bits.bits, bits.bytes)
                worse = float(np.mean(bits.bits / bits.bytes > first.bits / first.bytes))
                change = dict(zip(change, (*gap, worse), strict=True))
            rows.append({**row, **change, "perplexity": bits.perplexity})
        for task in domain.tasks.values():
            if model.kind != "causal" and (model.kind, task.kind) != ("seq2seq", "generation"):
                continue  # options are scored by decoders alone
            answers = score.solve(model, task)
            value, low, high = answers.interval()
            row = {
                "model": name,
                "domain": f"{domain.name}: {task.name}",
                "metric": task.metric,
                "better": "higher",
                "value": value,
                "low": low,
                "high": high,
                "n": len(task.rows),
            }
            change = dict.fromkeys(("change", "change_low", "change_high", "p", "flips"))
            before = base.setdefault(task.name, answers)
            if before is not answers:
                change = dict(
                    zip(change, (*answers.against(before), statistics.negative_flips(before.right, answers.right)[0]), strict=True)
                )
            rows.append({**row, **change})
    return rows


def limited(domain: Domain, split: str, most: int) -> list[str]:
    """Held-out documents up to ``most`` bytes (the first ones, in the domain's order)."""
    if split not in domain.splits:
        return []
    found: list[str] = []
    for text in domain.texts(split):
        if most <= 0:
            break
        found.append(text)
        most -= len(text.encode())
    return found


def measured_texts(domain: Domain, split: str) -> list[str]:
    """All text a domain is measured on: its split, and the prompts of its tasks."""
    texts = domain.texts(split) if split in domain.splits else []
    return [*texts, *(str(row.get("prompt", "")) for task in domain.tasks.values() for row in task.rows)]
