"""Measures models on domains: bits per byte and tasks on text, accuracy on arrays, each against the first model, item by item."""

import sys
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .domain import Domain
from .domain.arrays import ArrayDomain, open_domain, overlap
from .domain.contamination import contamination
from .errors import AcclimateError
from .progress import say
from .runs import now, provenance

QUERIES = 1000  # rows of a domain that encoders are measured on

if TYPE_CHECKING:
    from .engines.score import Answers
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
    """Measure models (the first is the one others are compared with) on domains given as name -> source (or Domain, or ArrayDomain).

    ``outside`` names what a specialist should not lose. Writes a report if ``out``.
    """
    from . import report
    from .model import open_model

    loaded = {name: open_model(name) for name in models}
    roles = {**dict.fromkeys(outside or {}, "out"), **dict.fromkeys(domains, "in")}
    given = {**domains, **(outside or {})}
    opened = {n: open_domain(n, str(spec)) if isinstance(spec, (str, Path)) else spec for n, spec in given.items()}
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
    models: dict[str, Any], domains: dict[str, Any], roles: dict[str, str], split: str, most: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every model on every domain of its form: the result rows, and what each domain held.

    A network for arrays without a head gets one for the occasion, probed on what the domains in the role "in" have to train on.
    """
    results: list[dict[str, Any]] = []
    counts = {}
    own = {n: d for n, d in domains.items() if roles[n] == "in" and isinstance(d, ArrayDomain) and "train" in d.splits}
    if own and all(domain.classes == next(iter(own.values())).classes for domain in own.values()):
        from .engines.finetune import probed

        models = {name: probed(model, own) if model.kind == "featurizer" else model for name, model in models.items()}
    for name, domain in domains.items():
        found, held = examine(domain, models, split, most)
        counts[name] = {"role": roles[name], **held, "source": domain.source, "licence": domain.licence}
        results += found
    return results, counts


@singledispatch
def examine(domain: Any, models: dict[str, Any], split: str, most: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Every model on one domain, and how much that was: text up to ``most`` bytes, arrays whole."""
    some = limited(domain, split, most)
    held = {"documents": len(some), "bytes": sum(len(text.encode()) for text in some)}
    return [*measure(models, domain, some), *retrieved(models, domain, split)], held


@examine.register
def _(domain: ArrayDomain, models: dict[str, Any], split: str, most: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    from .engines import finetune, score

    if split not in domain.splits:
        return [], {"documents": 0, "bytes": 0}
    held = domain.rows(split)
    wanted = [held.classes[number] for number in held.y]
    rows: list[dict[str, Any]] = []
    base: score.Answers | None = None
    for name, model in models.items():
        if model.kind == "classifier":
            found = finetune.guesses(model.net, held.tensors()[0])
            answers = score.Answers([model.classes[number] for number in found.tolist()], wanted, "accuracy")
            rows.append(_answered(name, domain.name, answers, base))
            base = base or answers
    return rows, {"documents": len(held), "bytes": held.x.nbytes}


def hashes(models: dict[str, Any], domains: dict[str, Any]) -> dict[str, Any]:
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
            first, change = base.setdefault("bits", bits), None
            if first is not bits:
                gap = statistics.paired_difference(first.bits, first.bytes, bits.bits, bits.bytes)
                change = (*gap, float(np.mean(bits.bits / bits.bytes > first.bits / first.bytes)))
            row = _row(name, domain.name, "bits_per_byte", "lower", bits.interval(), len(texts), change)
            rows.append({**row, "perplexity": bits.perplexity})
        for task in domain.tasks.values():
            if model.kind != "causal" and (model.kind, task.kind) != ("seq2seq", "generation"):
                continue  # options are scored by decoders alone
            answers = score.solve(model, task)
            rows.append(_answered(name, f"{domain.name}: {task.name}", answers, base.get(task.name)))
            base.setdefault(task.name, answers)
    return rows


def retrieved(models: "dict[str, Model]", domain: Domain, split: str) -> list[dict[str, Any]]:
    """Every encoder's mean average precision on labelled text or pairs, query by query against the first encoder.

    An adapter of the domain's name is used, or the only one there is.
    """
    encoders = {name: model for name, model in models.items() if model.kind == "encoder"}
    if not encoders or domain.form not in ("labelled", "pairs") or split not in domain.splits:
        return []
    from .engines.embed import Encoder, ranked
    from .parts import statistics

    rows: list[dict[str, Any]] = []
    base: np.ndarray | None = None
    for name, model in encoders.items():
        encoder = Encoder(model)
        own = [each for each in encoder.domains if each == domain.name or len(encoder.domains) == 1]
        try:
            found, _ = ranked(encoder, domain, split, adapter=own[0] if own else "", most=QUERIES)
        except AcclimateError as reason:  # nothing to find: what was trained is not to be lost for that
            say(f"{name} is not measured: {reason}")
            return []
        change = None
        if base is not None:
            gap = statistics.paired_difference(base, np.ones(len(base)), found, np.ones(len(found)))
            change = (*gap, float(np.mean(found < base)))
        base = found if base is None else base
        interval = statistics.mean_interval(found)
        rows.append(_row(name, domain.name, "mean_average_precision", "higher", interval, len(found), change))
    return rows


def _answered(model: str, domain: str, answers: "Answers", before: "Answers | None") -> dict[str, Any]:
    """The row of a model's answers, compared with those of the first model."""
    from .parts import statistics

    change = None
    if before is not None:
        change = (*answers.against(before), statistics.negative_flips(before.right, answers.right)[0])
    return _row(model, domain, answers.metric, "higher", answers.interval(), len(answers.wanted), change)


def _row(
    model: str, domain: str, metric: str, better: str, interval: tuple[float, float, float], n: int, change: tuple | None
) -> dict[str, Any]:
    """One figure with its interval (value, low, high); ``change``: (difference, low, high, p, flips) against the first model."""
    row: dict[str, Any] = {"model": model, "domain": domain, "metric": metric, "better": better}
    row |= dict(zip(("value", "low", "high"), interval, strict=True)) | {"n": n}
    return row | dict(zip(("change", "change_low", "change_high", "p", "flips"), change or (None,) * 5, strict=True))


@singledispatch
def contaminated(domain: Any, measured: dict[str, Any], split: str) -> dict[str, Any]:
    """What a domain learns from that is measured too: long spans of text, whole rows of arrays (see ``contamination``)."""
    against = {name: measured_texts(other, split) for name, other in measured.items()}
    pairs = zip(domain.rows("train")["origin"], domain.texts("train"), strict=True)
    return contamination(pairs, {name: texts for name, texts in against.items() if texts}, domain=domain.name)


@contaminated.register
def _(domain: ArrayDomain, measured: dict[str, Any], split: str) -> dict[str, Any]:
    held = {name: other.splits[split] for name, other in measured.items() if isinstance(other, ArrayDomain) and split in other.splits}
    return overlap(domain.name, domain.rows("train"), held)


def limited(domain: "Domain | ArrayDomain", split: str, most: int) -> list[str]:
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


def measured_texts(domain: "Domain | ArrayDomain", split: str) -> list[str]:
    """All text a domain is measured on: its split, and the prompts of its tasks."""
    texts = domain.texts(split) if split in domain.splits else []
    return [*texts, *(str(row.get("prompt", "")) for task in domain.tasks.values() for row in task.rows)]
