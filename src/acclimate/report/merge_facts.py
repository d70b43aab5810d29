"""What the page says of a merge: the facts of its merge.json, added up per layer and role, and a line of text for every tensor."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import AcclimateError
from ..files import read_json
from ..parts.layer_groups import LAYER, ROLES, group_of, role_of
from .data import plain
from .numbers import NONE
from .tables import aligned

ROOM = 180_000  # characters of the table of all tensors
REQUANTISED = {"kept": "kept", "relative_error": "error", "unchanged_codes": "same"}  # per tensor: key, heading of its column


def read_merge(path: Path, names: Sequence[str] = (), room: int = ROOM) -> dict[str, Any]:
    """The facts of a merge.json as :func:`condense` gives them, or {"broken": why} where the file cannot be understood.

    names: of the merged models, in order, where those of their folders say nothing.
    """
    try:
        return condense(read_json(path), names, room)
    except AcclimateError as error:
        return {"broken": str(error)}
    except (OSError, UnicodeDecodeError) as error:
        return {"broken": f"{path} cannot be read: {error}"}


def condense(report: Any, names: Sequence[str] = (), room: int = ROOM) -> dict[str, Any]:
    """The facts of a merge, small whatever the size of the model: plain data.

    ``layers`` has a row for every role in every place: ``x`` (the number of the layer, -1 before the first, their number behind the last),
    ``weights``, ``changed`` (share), ``rms`` (root mean square of the merged weights), ``moved`` (length of the change over that of the
    base, where merge.json has it per tensor), ``cosine`` {parent: mean over the tensors, weighted by size}. ``table`` is the text of all
    tensors, ``hidden`` how many had no room in it.

    Raises AcclimateError if nothing in it can be drawn.
    """
    facts = report.get("tensors") if isinstance(report, dict) else None
    if not isinstance(facts, dict) or not facts:
        raise AcclimateError("merge.json holds no tensors, so there is nothing to draw; merge again")
    tensors = {str(name): fact for name, fact in facts.items() if _sound(fact)}
    if not tensors:
        raise AcclimateError("no tensor in merge.json has shape, norm, changed and cosine, so there is nothing to draw; merge again")
    made = report.get("made") if isinstance(report.get("made"), dict) else {}
    settings = str(made.get("settings") or made.get("recipe") or "")
    labels = _labels(tensors, names, settings)
    stacks = _stacks(tensors)
    again = report.get("requantised") if isinstance(report.get("requantised"), dict) else {}
    table, hidden = _table(tensors, labels, _per_tensor(again), room)
    return plain({
        "method": str(made.get("method") or "merge"),
        "settings": settings,
        "seed": made.get("seed"),
        "parents": _parents(labels, made),
        "weights": _number(report.get("weights")),
        "changed": _number(report.get("changed")),
        "tensors": len(tensors),
        "unreadable": len(facts) - len(tensors),
        "stacks": stacks,
        "layers": _layers(tensors, labels, stacks),
        "vocabulary": _vocabulary(report.get("vocabulary"), labels),
        "probe": report.get("probe") if isinstance(report.get("probe"), dict) else {},
        "requantised": {"format": str(again.get("format")), **{key: _number(again.get(key)) for key in REQUANTISED}} if again else {},
        "table": table,
        "hidden": hidden,
    })  # fmt: skip


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _sound(fact: Any) -> bool:
    return (
        isinstance(fact, dict)
        and isinstance(fact.get("shape"), list)
        and all(isinstance(side, int) and side >= 0 for side in fact["shape"])
        and _number(fact.get("norm")) is not None
        and _number(fact.get("changed")) is not None
        and isinstance(fact.get("cosine"), dict)
    )


def _labels(tensors: dict[str, dict], names: Sequence[str], settings: str) -> dict[str, str]:
    """A short name for every "number:reference" that cosines are given for, the base marked."""
    base = _base(settings)
    keys = list(dict.fromkeys(key for fact in tensors.values() for key in fact["cosine"]))
    found: dict[str, str] = {}
    for key in keys:
        number, _, ref = key.partition(":")
        path, place = Path(ref), int(number) if number.isdigit() else len(names)
        label = path.parent.name if path.name == "model" and path.parent.parent.name == "steps" else path.name or ref
        if path.parent.name == "inputs":  # a model that was in memory alone, saved under its fingerprint
            label = names[place] if place < len(names) else "base"
        elif base and ref == base:
            label += " (base)"
        found[key] = label if label not in found.values() else f"{label} [{key}]"
    return found


def _base(settings: str) -> str:
    """The base that the settings of a merge, or a mergekit file, name."""
    try:
        data = yaml.safe_load(settings)
    except yaml.YAMLError:
        return ""
    return str(data.get("base") or data.get("base_model") or "") if isinstance(data, dict) else ""


def _parents(labels: dict[str, str], made: dict) -> list[dict[str, str]]:
    rows = made.get("parents")
    hashes = {row.get("ref"): row.get("sha256") for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}
    refs = {label: key.partition(":")[2] for key, label in labels.items()}
    return [{"name": label, "ref": ref, "sha256": str(hashes.get(ref) or "")} for label, ref in refs.items()]


def _stacks(tensors: dict[str, dict]) -> dict[str, int]:
    """How many layers each stack of layers has, by what stands before their numbers (two for an encoder with a decoder)."""
    found: dict[str, int] = {}
    for name in tensors:
        if match := LAYER.match(name):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _layers(tensors: dict[str, dict], labels: dict[str, str], stacks: dict[str, int]) -> list[dict[str, Any]]:
    starts, total = {}, 0
    for prefix, length in stacks.items():
        starts[prefix], total = total, total + length
    sums: dict[tuple[int, int], dict[str, Any]] = {}
    for name, fact in tensors.items():
        if not str(fact.get("dtype", "float")).startswith(("float", "bfloat")):
            continue
        match, role = LAYER.match(name), role_of(name)
        place = group_of(name)
        x = starts[match[1]] + int(match[2]) if match else -1 if place == "embedding" else total
        if match and len(stacks) > 1:
            place = f"{match[1]}{match[2]}"
        row = sums.setdefault((x, ROLES.index(role)), {"place": place, "role": role, "weights": 0, "sums": [0.0] * 4, "cosine": {}})
        size, moved = math.prod(fact["shape"]), _number(fact.get("moved"))
        row["weights"] += size
        added = [fact["changed"] * size, fact["norm"] * fact["norm"], *((0.0, 0) if moved is None else (size * moved * moved, size))]
        row["sums"] = [a + b for a, b in zip(row["sums"], added, strict=True)]
        for key, cosine in fact["cosine"].items():
            if _number(cosine):  # exactly 0: there was no direction to compare
                whole = row["cosine"].setdefault(labels[key], [0.0, 0])
                whole[0], whole[1] = whole[0] + cosine * size, whole[1] + size
    rows = []
    for (x, _), row in sorted(sums.items()):
        changed, squares, moved, known = row.pop("sums")
        size = max(1, row["weights"])
        row |= {"x": x, "changed": changed / size, "rms": math.sqrt(squares / size)}
        row |= {"moved": math.sqrt(moved / known) if known else None}
        row["cosine"] = {label: a / b for label, (a, b) in row["cosine"].items() if b}
        rows.append(row)
    return rows


def _vocabulary(report: Any, labels: dict[str, str]) -> dict[str, Any]:
    """Rows of the output's embedding, and how many of them each model had itself."""
    if not isinstance(report, dict) or not _number(report.get("rows")):
        return {}
    by_ref = {key.partition(":")[2]: label for key, label in labels.items()}
    models = []
    for key, rows in (report.get("models") or {}).items():
        lacking = _number(rows.get("rows_lacking")) if isinstance(rows, dict) else None
        if lacking is not None:
            label = labels.get(key) or by_ref.get(key.partition(":")[2]) or key
            models.append({"name": label, "rows": rows.get("rows"), "shared": report["rows"] - lacking, "lacking": lacking})
    special = report.get("special")
    kept = {key: report.get(key) for key in ("choice", "rows", "tokens", "added")}
    return {**kept, "special": len(special) if isinstance(special, list) else 0, "models": models}


def _per_tensor(again: dict) -> dict[str, dict[str, float]]:
    """What storing the merge in the base's codes again did to each tensor: {heading: {tensor: value}}."""
    rows = again.get("tensors")
    found: dict[str, dict[str, float]] = {}
    for name, row in rows.items() if isinstance(rows, dict) else ():
        for key, heading in REQUANTISED.items():
            value = _number(row.get(key)) if isinstance(row, dict) else None
            if value is not None:
                found.setdefault(heading, {})[str(name)] = value
    return found


def _table(tensors: dict[str, dict], labels: dict[str, str], again: dict[str, dict], room: int) -> tuple[str, int]:
    """Aligned text: a heading for each kind of tensor, a row for each layer that has one; and how many tensors had no room."""
    moved = any(_number(fact.get("moved")) is not None for fact in tensors.values())
    narrow = len(tensors) * (24 + 8 * (len(labels) + len(again) + moved)) > room  # then the lowest cosine stands for all
    columns = ["layer", "norm", *(["moved"] if moved else []), "changed"]
    columns += ["lowest"] if narrow else [f"cos {place}" for place in range(1, len(labels) + 1)]
    columns += list(again)
    kinds: dict[str, list[list[str]]] = {}
    for name, fact in tensors.items():
        match = LAYER.match(name)
        cosines = [_number(fact["cosine"].get(key)) or None for key in labels]
        if narrow:
            cosines = [min((cosine for cosine in cosines if cosine is not None), default=None)]
        cells = [match[2] if match else NONE, f"{fact['norm']:.5g}"]
        cells += [_text(_number(fact.get("moved")), ".3g")] if moved else []
        cells += [f"{100 * fact['changed']:.2f}%", *(_text(cosine, ".5f") for cosine in cosines)]
        cells += [_text(values.get(name), ".3g") for values in again.values()]
        title = f"{match[1]}*{match[3]}" if match else name
        kinds.setdefault(f"{title}  {' x '.join(map(str, fact['shape'])) or 'one number'}", []).append(cells)
    lines = iter(aligned([columns, *(cells for rows in kinds.values() for cells in rows)]).split("\n"))
    shown, used, hidden = [next(lines)], 0, 0
    for heading, rows in kinds.items():
        some = [next(lines) for _ in rows]
        fitting = max(0, room - used - len(heading)) // (len(some[0]) + 1)
        hidden += max(0, len(some) - fitting)
        if fitting:
            shown += ["", heading, *some[:fitting]]
            used += len(heading) + 2 + min(fitting, len(some)) * (len(some[0]) + 1)
    return "\n".join(shown), hidden


def _text(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
