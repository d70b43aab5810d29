"""Several runs in one report, if they were measured on the same sets."""

import json
from typing import Any

from ..errors import AcclimateError
from .data import check, parent_of


def merge(runs: list[dict[str, Any]], *, force: bool = False) -> dict[str, Any]:
    """One report of several runs' data.

    A set (domain) of one name must be the same set in every run: AcclimateError where hashes or roles differ, unless ``force``, which turns
    the refusal into a note. Bases of one name and hash become one; models of one name that are not the same get their run's name in front.
    """
    if not runs:
        raise AcclimateError("nothing to compare; name at least one run")
    runs = [check(run, f"run {number}") for number, run in enumerate(runs, start=1)]
    if len(runs) == 1:
        return runs[0]
    labels = _labels(runs)
    notes = [f"Compared here: {', '.join(labels)}. Gains and p are against the base on the same items, not between models."]
    notes += _same_sets(runs, labels, force)
    bases = {(run["base"], _hash(run, "models", run["base"])) for run in runs if run["base"]}
    if len(bases) > 1:
        notes.append("The runs start from different bases: every gain is over the model's own base.")
    renamed = [_names(run, label, runs) for run, label in zip(runs, labels, strict=True)]
    base = renamed[0].get(runs[0]["base"], runs[0]["base"]) if len(bases) == 1 else ""
    merged = check({"title": "Comparison of " + ", ".join(labels), "base": base, "created": max(run["created"] for run in runs)})
    merged["command"] = "\n".join(dict.fromkeys(run["command"] for run in runs if run["command"]))
    merged["recipe"] = "\n---\n".join(f"# {label}\n{run['recipe']}" for run, label in zip(runs, labels, strict=True) if run["recipe"])
    seen: set[tuple] = set()
    prompts: dict[tuple, dict] = {}
    for run, names, label in zip(runs, renamed, labels, strict=True):
        for domain, facts in run["domains"].items():
            merged["domains"].setdefault(domain, facts)
        for part in ("models", "curves"):
            for model, facts in run[part].items():
                merged[part].setdefault(names.get(model, model), facts)
        for part in ("merges", "searches"):
            for name, facts in run[part].items():
                taken = merged[part].get(names.get(name, name), facts) != facts
                merged[part][f"{label}/{name}" if taken else names.get(name, name)] = facts
        for result in run["results"]:
            result = {**result, "model": names.get(result["model"], result["model"])}
            what = result["model"], result["domain"], result["metric"]
            if what not in seen:
                merged["results"].append(result)
            seen.add(what)
        for sample in run["samples"]:
            texts = {names.get(model, model): text for model, text in (sample.get("texts") or {}).items()}
            key = sample.get("domain", ""), sample.get("prompt", "")
            prompts.setdefault(key, {**sample, "texts": {}})["texts"].update(texts)
    merged["samples"] = list(prompts.values())
    merged["contamination"], counted = _contamination(runs)
    merged["provenance"] = {label: run["provenance"] for run, label in zip(runs, labels, strict=True) if run["provenance"]}
    merged["notes"] = [*notes, *counted, *dict.fromkeys(note for run in runs for note in run["notes"])]
    return merged


def _labels(runs: list[dict]) -> list[str]:
    """A name for each run: its title where that tells it apart, else its number."""
    titles = [run["title"] for run in runs]
    return [title if title and titles.count(title) == 1 else f"run {number}" for number, title in enumerate(titles, start=1)]


def _hash(run: dict, kind: str, name: str) -> str:
    hashes = run["provenance"].get(kind) or {}
    return hashes.get(name) or hashes.get(parent_of(name), "") if kind == "domains" else hashes.get(name) or ""


def _same_sets(runs: list[dict], labels: list[str], force: bool) -> list[str]:
    """Notes on what could not be verified; AcclimateError at the first set that is not the same everywhere."""
    notes = []
    for domain in dict.fromkeys(name for run in runs for name in run["domains"]):
        holders = [(run, label) for run, label in zip(runs, labels, strict=True) if domain in run["domains"]]
        (first, first_label), *others = holders
        for run, label in others:
            line = ""
            ours, theirs = _hash(first, "domains", domain), _hash(run, "domains", domain)
            roles = first["domains"][domain]["role"], run["domains"][domain]["role"]
            if ours and theirs and ours != theirs:
                line = f"set {domain!r} is not the same in {first_label!r} ({ours}) and {label!r} ({theirs})"
            elif roles[0] != roles[1]:
                line = f"set {domain!r} has role {roles[0]!r} in {first_label!r} but {roles[1]!r} in {label!r}"
            elif not (ours and theirs):
                notes.append(
                    f"Whether set {domain!r} is the same in {first_label!r} and {label!r} could not be verified: a hash is missing."
                )
            if line and not force:
                raise AcclimateError(f"{line}, so their results cannot be compared; measure both on the same set, or use force")
            if line:
                notes.append(f"Forced: {line}.")
    return notes


def _names(run: dict, label: str, runs: list[dict]) -> dict[str, str]:
    """New names for models whose name means something else in another run; one model (same hash) and one base keep theirs."""
    names = {}
    mine = {*run["models"], *(result["model"] for result in run["results"])}
    for model in mine:
        for other in runs:
            if other is run or model not in {*other["models"], *(result["model"] for result in other["results"])}:
                continue
            hashes = _hash(run, "models", model), _hash(other, "models", model)
            both_bases = model == run["base"] == other["base"]
            same = hashes[0] == hashes[1] if both_bases or all(hashes) else False
            if not same:
                names[model] = f"{label}/{model}"
    return names


def _contamination(runs: list[dict]) -> tuple[dict, list[str]]:
    found = [run["contamination"] for run in runs if run["contamination"]]
    if not found:
        return {}, []
    spans = {json.dumps(span, sort_keys=True): span for part in found for span in part.get("spans") or []}
    merged: dict[str, Any] = {key: sum(part.get(key) or 0 for part in found) for key in ("checked", "removed")}
    merged["spans"] = list(spans.values())
    return merged, [f"Contamination counts are sums over {len(found)} of {len(runs)} runs."]
